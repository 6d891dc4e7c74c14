"""Reports: JSON both ways, sentences for what is no report, and never half a file."""

import json
from pathlib import Path

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

from memlab.report import FAILED, HOLDS, REFUTED, SKIPPED, STATUSES, Finding, NotAReport, Report, load, write_atomically

WHOLE = st.integers(-(1 << 62), 1 << 62)
BYTES = st.dictionaries(st.text(), WHOLE, max_size=4)
FINDINGS = st.builds(
    Finding,
    experiment=st.text(),
    arm=st.text(),
    title=st.text(),
    claim=st.text(),
    status=st.sampled_from(STATUSES),
    reason=st.text(),
    sizes=BYTES,
    steps=WHOLE,
    seed=WHOLE,
    rows=st.lists(BYTES, max_size=4),
    expected=st.lists(BYTES, max_size=4),
    bill=st.dictionaries(st.text(), st.dictionaries(st.text(), st.lists(WHOLE, min_size=2, max_size=2)), max_size=2),
    sources=st.dictionaries(st.text(), st.text()),
    card=st.none() | WHOLE,
    base=BYTES,
    predicted=st.none() | WHOLE,
    died=st.none() | WHOLE,
    oom=st.text(),
    filled=BYTES,
    held=st.text(),
    left=WHOLE,
    seconds=st.floats(0, 1e6),
)
REPORTS = st.builds(Report, machine=st.dictionaries(st.text(), st.text()), findings=st.lists(FINDINGS, max_size=3))


@given(REPORTS)
def test_json_both_ways(report):
    assert Report.from_json(report.to_json()) == report


@given(st.text())
def test_any_text_is_a_report_or_a_sentence(text):
    with pytest.raises(NotAReport, match="it is"):
        Report.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats() | st.text(), lambda each: st.lists(each, max_size=3)
)


@given(st.sampled_from(list(vars(samples.finding()))), JSON)
def test_any_field_may_hold_anything(field, value):
    content = json.loads(samples.report(samples.finding()).to_json())
    content["findings"][0][field] = value
    try:
        read = Report.from_json(json.dumps(content))
    except NotAReport as error:
        assert str(error).startswith("it is damaged: ")
    else:
        assert getattr(read.findings[0], field) == value


def changed(**what):
    return json.dumps(json.loads(samples.report(samples.finding()).to_json()) | what)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[1, 2]", "it is JSON, but not a memlab report"),
        ('{"a": 1}', "it is JSON, but not a memlab report"),
        (changed(version=2), "it is a report of format 2; this memlab reads 1"),
        (changed(version=None), "it is a report of format None; this memlab reads 1"),
        (changed(findings=None), "it is damaged"),
        (changed(findings=[{}]), "it is damaged"),
        (changed(findings=[{"experiment": "x", "arm": "y", "new": 1}]), "it is damaged: unknown fields ['new']"),
        (changed(findings=[{"experiment": "x", "arm": "y", "status": "fine"}]), "has no valid status"),
        (changed(findings=[{"experiment": "x", "arm": "y", "rows": [{"saved": 1.5}]}]), "x:y has no valid rows"),
        (changed(findings=[{"experiment": "x", "arm": "y", "left": 10**400}]), "x:y has no valid left"),
        (changed(machine=[]), "it is damaged"),
        ('{"format": "memlab report", "version": 1, "machine": {}}', "it is damaged: it has no 'findings'"),
    ],
)
def test_what_is_no_report_gets_a_sentence(text, sentence):
    with pytest.raises(NotAReport) as caught:
        Report.from_json(text)
    assert sentence in str(caught.value)


def test_binary_is_no_report(tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(b"\x00\xff\xfe")
    with pytest.raises(NotAReport, match="it is not text"):
        load(path)


def test_a_file_without_end_is_no_report():
    with pytest.raises(NotAReport, match="larger than 256"):
        load(Path("/dev/zero"))


def test_holds_only_when_every_claim_was_measured_and_holds():
    good = samples.finding()
    assert samples.report(good).holds
    for other in (samples.refuted(), samples.skipped(), samples.failed()):
        assert not samples.report(good, other).holds
    assert not samples.report().holds
    counted = samples.report(good, samples.refuted(), samples.skipped(), samples.failed())
    assert [counted.count(status) for status in (HOLDS, REFUTED, SKIPPED, FAILED)] == [1, 1, 1, 1]


def test_save_and_load(tmp_path):
    path = tmp_path / "report.json"
    report = samples.report(samples.finding(), samples.dead())
    report.save(path)
    assert load(path) == report
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_atomically(path, "old")

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_a_link_is_followed(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_device_is_written_to_and_not_replaced():
    null = Path("/dev/null")
    if not null.is_char_device():
        pytest.skip("there is no /dev/null here")
    write_atomically(null, "gone")
    assert null.is_char_device()
