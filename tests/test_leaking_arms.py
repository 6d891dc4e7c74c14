"""Every arm of the experiments whose graphs grow names the variable that holds them."""

import re

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
    """Return by experiment the arms whose closed form says that each step saves more, with their sizes."""
    arms = {}
    for name, path in experiment.files().items():
        found = experiment.load(path)
        sizes = found.with_sizes(SMALL.get(name, {}), "cpu")
        for arm in found.arms:
            saved = [total(arm.saved(sizes, step)) for step in (4, 8, 12, 16, 20)]
            if saved == sorted(set(saved)):
                arms.setdefault(name, []).append((found, arm, sizes))
    return arms


LEAKING = leaking()


def largest_of(arm, found):
    """Return the first of these owners that is a variable of the arm, or of a function in it."""
    return next(each for each in found if re.search(rf"\b{arm}\b", f"{each.name} {each.where}"))


@pytest.mark.parametrize("name", LEAKING)
def test_the_guilty_variables_are_named(name, monkeypatch):
    """The arms of an experiment side by side: each look at the heap is for all of them."""
    monkeypatch.setattr(holders, "SECONDS", None)
    material = [(arm, sizes, found.setup(sizes)) for found, arm, sizes in LEAKING[name]]
    with memlab.watch():
        running = [arm.run(*given) for arm, _, given in material]
        for _ in range(STEPS):
            for each in running:
                next(each)
        before = holders.find(STEPS)
        for each in running:
            next(each)
        looked = holders.find(STEPS + 1, before)
        for arm, sizes, _ in material:
            owner, pattern = OWNERS.get(f"{name}:{arm.name}") or OWNERS[name]
            largest = largest_of(arm.name, looked)
            assert (largest.name, largest.bytes) == (owner, total(arm.saved(sizes, STEPS + 1)))
            assert largest.path.startswith(owner)
            assert largest.born.startswith(str(experiment.folder().name) + "/")
            assert largest.pattern == pattern
        for each in running:
            each.close()


def test_all_of_these_are_found():
    names = {f"{name}:{arm.name}" for name, arms in LEAKING.items() for _, arm, _ in arms}
    assert len(names) > 20
    assert {name for name in OWNERS if ":" in name} <= names
