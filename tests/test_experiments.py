"""Every claim at sizes nobody chose, and the instruments' honesty: a wrong prediction or a changed arm turns red."""

import itertools

import pytest
import torch
from holders import NEEDS_PACKED
from hypothesis import given, settings
from hypothesis import strategies as st

from memlab import experiment
from memlab import measure as measuring
from memlab.job import Job
from memlab.measure import measure
from memlab.probes import Unavailable
from memlab.probes.host import Host

FILES = {name: path for name, path in experiment.files().items() if name != "oom_demo"}  # it dies by its own sizes
ARMS = [(name, arm) for name, path in FILES.items() for arm in experiment.summarise(path).arms]

ONE_BYTE_MORE = """
from dataclasses import replace


def one_byte_more(expected):
    return lambda s, k: expected(s, k) | {"one byte": 1}


def broken(arm):
    return replace(arm, PROBE=one_byte_more(arm.PROBE)) if arm.name == "ARM" else arm


experiment = replace(experiment, arms=[broken(arm) for arm in experiment.arms])
"""


@pytest.fixture(autouse=True, scope="module")
def without_host():
    """Leave out what no claim is about and what takes the kernel milliseconds a row."""

    def refuse(self):
        raise Unavailable("left out of these tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Host, "__enter__", refuse)
        yield


def draw_sizes(name):
    """Return a strategy for sizes from 1 up; where an experiment has many, they multiply, so each is smaller."""
    names = experiment.load(FILES[name]).sizes
    return st.fixed_dictionaries(dict.fromkeys(names, st.integers(1, 70 if len(names) <= 2 else 16)))


def told(findings):
    """Return ``{arm: reason}`` of every finding that does not hold."""
    return {finding.arm: f"{finding.status}: {finding.reason}" for finding in findings if finding.status != "holds"}


def measure_all(path, **job):
    return [measure(Job(path, arm, **job)) for arm in experiment.summarise(path).arms]


@pytest.mark.parametrize(("name", "arm"), ARMS, ids=[f"{name}:{arm}" for name, arm in ARMS])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_closed_form_holds_at_any_sizes(name, arm, data):
    sizes = data.draw(draw_sizes(name))
    finding = measure(Job(FILES[name], arm, sizes=sizes))
    assert finding.status == "holds", finding.reason
    assert len(finding.rows) == finding.steps > 0


@pytest.mark.parametrize("name", FILES)
def test_closed_forms_hold_where_every_size_is_one(name):
    sizes = dict.fromkeys(experiment.load(FILES[name]).sizes, 1)
    assert not told(measure_all(FILES[name], sizes=sizes))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
@pytest.mark.parametrize("name", FILES)
def test_closed_forms_hold_on_cuda(name):
    loaded = experiment.load(FILES[name])
    sizes = dict(zip(loaded.sizes, itertools.cycle((5, 13, 3, 7)), strict=False))
    red = told(measure_all(FILES[name], device="cuda", sizes=sizes))
    unproven = {arm.name for arm in loaded.arms if arm.proves and red.get(arm.name, "").startswith("skipped: needs a")}
    assert set(red) == unproven, red


@pytest.mark.parametrize(("probe", "measured", "which"), [("saved", "saved", 0), ("allocated", "storages", -1)])
@pytest.mark.parametrize("name", FILES)
def test_one_byte_too_many_turns_exactly_that_arm_red(tmp_path, name, probe, measured, which):
    arm = list(experiment.summarise(FILES[name]).arms)[which]
    path = tmp_path / f"{name}.py"
    path.write_text(FILES[name].read_text() + ONE_BYTE_MORE.replace("PROBE", probe).replace("ARM", arm))
    red = told(measure_all(path))
    assert list(red) == [arm], red
    assert red[arm].startswith(f"refuted: step 1: {measured} ")
    assert red[arm].endswith("(-1 B)")


@pytest.mark.parametrize(
    ("name", "arm", "before", "after"),
    [
        ("forward_without_backward", "outputs_kept", "model(x)", "model(x).detach()"),
        ("forward_without_backward", "total_loss", "model(x).mean()", "model(x).mean().detach()"),
        ("detach_vs_rewrap", "as_is", "cut = output", "cut = output.detach()"),
        ("detach_vs_rewrap", "data_changed", "output.data", "output.detach()"),
        ("requires_grad_false_inputs", "linear_both", "fresh(x, True)", "fresh(x, True).detach()"),
        ("requires_grad_false_inputs", "frozen_rest", "model(x)", "model(x).detach()"),
        ("inference_modes", "eval_alone", "head(body(x))", "head(body(x).detach())"),
        ("inference_modes", "requires_grad_spreads", "head(body(x))", "head(body(x)).detach()"),
        ("retain_graph", "retained", "loss = model(x)", "loss = model(x).detach()"),
        ("dynamic_graph", "carried_state", "cell(state)", "cell(state.detach())"),
        ("checkpointing", "plain", "model(x)", "model(x).detach().requires_grad_()"),
        ("in_place", "leaky_relu", "F.leaky_relu(first(x))", "F.leaky_relu(first(x).detach())"),
        ("optimizer_state", "momentum", "momentum=0.9", "momentum=0.0"),
    ],
)
def test_one_change_turns_exactly_that_arm_red(tmp_path, name, arm, before, after):
    head, marker, tail = FILES[name].read_text().partition(f"def {arm}(")
    assert before in tail.partition("\n\n\n")[0]
    path = tmp_path / f"{name}.py"
    path.write_text(head + marker + tail.replace(before, after, 1))
    red = told(measure_all(path))
    assert list(red) == [arm], red
    assert red[arm].startswith("refuted: ")


@pytest.mark.parametrize(
    ("arm", "tensors"),
    [("plain", 2 * 4), ("whole_model", 2 * 4), ("every_block", 3 + 2), ("every_layer", 4 * 4 - 1 + 1)],
)
def test_checkpoints_hold_in_the_middle_of_backward(arm, tensors):
    """All at once, or the inputs that are kept and what one block or one layer saves beside them."""
    finding = measure(Job(FILES["checkpointing"], arm, sizes={"blocks": 4, "batch": 5, "width": 7}))
    assert finding.rows[-1]["saved_peak"] == tensors * 4 * 5 * 7


def test_proof_is_not_claimed_on_a_device_that_does_not_compute(monkeypatch):
    monkeypatch.setattr(measuring.cuda_probe, "check_available", lambda device: None)
    monkeypatch.setattr(measuring.cuda_probe, "computes", lambda device: False)
    finding = measure(Job(FILES["detach_vs_rewrap"], "data_changed", device="cuda"))
    assert finding.status == "skipped"
    assert finding.reason.startswith("needs a device that computes: it proves that ")
    assert not finding.rows


@NEEDS_PACKED
def test_the_arm_that_dies_names_its_variable():
    """In a process where other tests have left graphs, too: the arm's are by far the most."""
    finding = measure(Job(experiment.files()["oom_demo"], "keep_scores"))
    assert (finding.status, finding.died) == ("holds", finding.predicted)
    assert finding.held.startswith("scores (local of keep_scores(), ")
    assert finding.held.endswith(f" -> list[{finding.died - 2}] -> Tensor -> AddBackward0")
