"""Every arm of the experiments whose graphs grow names the variable that holds them."""

import pytest

import memlab
from memlab import experiment
from memlab.measure import total
from memlab.tracing import holders

STEPS = 6
SMALL = {"oom_demo": {"batch": 2, "image": 32, "channels": 4, "hidden": 16, "words": 32, "length": 3}}
OWNERS = {
    "dynamic_graph:carried_state": ("state", "undetached recurrent state"),
    "forward_without_backward:losses_kept": ("losses", "kept losses"),
    "forward_without_backward:outputs_kept": ("outputs", "kept outputs"),
    "forward_without_backward:total_loss": ("total", "accumulated loss"),
    "in_place": ("outputs", "kept outputs"),
    "inference_modes": ("outputs", "kept outputs"),
    "inference_modes:eval_alone": ("outputs", "eval without no_grad"),
    "inference_modes:inference_tensor_refuses": ("outputs", "kept outputs"),
    "oom_demo:keep_scores": ("scores", "kept outputs"),
    "requires_grad_false_inputs": ("outputs", "kept outputs"),
    "who_keeps:average_with_history": ("average", "average with history"),
    "who_keeps:cache_of_losses": ("cache_of_losses.<locals>.loss", "lru_cache"),
    "who_keeps:closures_of_losses": ("callbacks", "closure"),
    "who_keeps:error_kept": ("errors", "traceback"),
    "who_keeps:hook_keeps_outputs": ("activations", "hook store"),
    "who_keeps:replay_with_graphs": ("memory", "replay buffer"),
}


def leaking():
    """Yield every arm whose closed form says that each step saves more."""
    for name, path in experiment.files().items():
        found = experiment.load(path)
        sizes = found.with_sizes(SMALL.get(name, {}), "cpu")
        for arm in found.arms:
            saved = [total(arm.saved(sizes, step)) for step in (4, 8, 12, 16, 20)]
            if saved == sorted(set(saved)):
                yield pytest.param(found, arm, sizes, name, id=f"{name}:{arm.name}")


@pytest.mark.parametrize(("found", "arm", "sizes", "name"), list(leaking()))
def test_the_guilty_variable_is_named(found, arm, sizes, name):
    owner, pattern = OWNERS.get(f"{name}:{arm.name}") or OWNERS[name]
    running = arm.run(*found.setup(sizes))
    with memlab.watch() as seen:
        for _ in range(STEPS):
            next(running)
        before = holders.find(STEPS)
        next(running)
        largest = holders.find(STEPS + 1, before)[0]
        assert (largest.name, largest.bytes) == (owner, seen.saved.bytes)
        assert largest.path.startswith(owner)
        assert largest.born.startswith(str(experiment.folder().name) + "/")
        assert largest.pattern == pattern
        running.close()


def test_all_of_these_are_found():
    names = {each.id for each in leaking()}
    assert len(names) > 20
    assert {name for name in OWNERS if ":" in name} <= names
