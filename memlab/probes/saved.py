"""Saved tensors: what autograd nodes keep for backward, live."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from memlab import hooks
from memlab.ledger import SavedLedger
from memlab.lines import Line, Tree, tree_of
from memlab.probes.storages import Storages


class Saved:
    """Bytes that autograd saves for backward in this thread while the probe is open, followed until they are released.

    Counts each storage once. Sees through checkpoint, ``save_on_cpu`` and any other saved-tensor hooks, nested probes
    and double backward. It cannot see: other threads but for those that enter `opened_in_thread`, what torch.func saves
    inside a transform, lines and modules inside compiled regions, Python numbers that autograd wraps as 0-dim tensors,
    and plain attributes that a custom Function sets on its ``ctx``. `blind` says which of these it met, where it can
    tell.

    Args:
        storages: an open `Storages` probe, so that what was there before is told from what was made here. Without one,
            a leaf tensor counts as an input when Python code holds it.
        where: record the user's source line of each saved tensor.
        modules: record the module in whose forward each tensor is saved.
        ignore: files, folders or names of packages whose source lines are not the user's.
    """

    name = "saved"

    def __init__(
        self,
        storages: Storages | None = None,
        *,
        where: bool = True,
        modules: bool = True,
        ignore: Iterable[str] = (),
    ) -> None:
        made = storages.ledger if storages is not None else None
        self.ledger = SavedLedger(made, where=where, modules=modules, ignore=ignore)

    def __enter__(self) -> Saved:
        hooks.open_ledger(self.ledger)
        return self

    def __exit__(self, *error: object) -> None:
        hooks.close_ledger(self.ledger)

    def opened_in_thread(self) -> AbstractContextManager[None]:
        """Let this probe, which is open in another thread, see this one, too."""
        return hooks.opened_in_thread(self.ledger)

    def read(self) -> dict[str, int]:
        return {"saved": self.bytes, "saved_peak": self.peak, "saved_exclusive": self.exclusive}

    @property
    def bytes(self) -> int:
        """Bytes saved for backward now, without parameters, buffers and inputs."""
        return self.ledger.bytes

    @property
    def peak(self) -> int:
        """The most that `bytes` has been."""
        return self.ledger.peak

    @property
    def exclusive(self) -> int:
        """Bytes of `bytes` that would be freed if the graphs recorded here went away now."""
        return self.ledger.exclusive

    @property
    def tensors(self) -> int:
        """How many saved tensors are kept now (a count, not bytes)."""
        return self.ledger.tensors

    @property
    def lines(self) -> list[Line]:
        """One `Line` for every storage kept now, largest first; parameters, buffers and inputs included."""
        return self.ledger.lines

    @property
    def peak_lines(self) -> list[Line]:
        """What was kept when most was, ever, largest first, given storages left out; no steps in it."""
        return self.ledger.peak_lines

    @property
    def blind(self) -> list[str]:
        """Sentences about what this probe met and could not see."""
        on_ctx = self.ledger.on_ctx.items()
        told = (
            f"tensors that {each} keeps as attributes of its ctx are not counted: ctx.{name}" for each, name in on_ctx
        )
        return sorted({*self.ledger.blind, *told})

    def by(self, what: str) -> dict[str, int]:
        """Return `bytes` grouped by class (or kind), line, module, node, op, step, dtype, device or shape; adds up."""
        return self.ledger.by(what)

    def tree(self) -> Tree:
        """Return `bytes` by module, nested along the dotted names, with totals at every level."""
        return tree_of(self.by("module"))

    def reset_peak(self) -> None:
        """Let `peak` start again from the present `bytes`."""
        self.ledger.reset_peak()
