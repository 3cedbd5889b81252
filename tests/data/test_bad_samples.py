import json

import pytest

from vimi_diffusers.data import BadSample, BadSampleReport, TooManyBadSamples


def bad(number, reason="truncated"):
    return BadSample(reason, f"detail {number}", f"sample {number}")


def test_the_share_of_what_was_opened_is_exact(tmp_path):
    report = BadSampleReport(20, 0.1, tmp_path / "out/bad.jsonl")
    report.add_opened([bad(0), bad(1, "missing_caption")])
    with pytest.raises(TooManyBadSamples) as caught:
        report.add_opened([bad(2)])
    message = str(caught.value)
    assert "3 of 20 samples cannot be used, over `max_bad_share` 0.1" in message and "bad.jsonl" in message
    assert "2 x truncated" in message and "sample 1: detail 1" in message
    rows = [json.loads(line) for line in (tmp_path / "out/bad.jsonl").read_text().splitlines()]
    assert rows == [{"sample": f"sample {n}", "reason": reason, "detail": f"detail {n}"}
                    for n, reason in enumerate(("truncated", "missing_caption", "truncated"))]  # fmt: skip


def test_a_sample_counts_once_and_few_draws_mean_nothing():
    report = BadSampleReport(10_000, 0.05)
    report.add_opened([bad(0)])
    assert report.add_drawn([bad(1), bad(1)], drawn=10)  # a fifth of ten, but only ten
    assert not report.add_drawn([bad(1)], drawn=189)
    assert not report.add_drawn([], drawn=1) and len(report.bad) == 2
    report.add_drawn([bad(number) for number in range(2, 11)], drawn=20)
    with pytest.raises(TooManyBadSamples, match="13 of the 222 met so far, of 10000,"):
        report.add_drawn([bad(11), bad(12)], drawn=1)


def test_a_small_data_set_is_judged_when_it_was_seen_once():
    report = BadSampleReport(10, 0.15)
    report.add_drawn([bad(0), bad(1)], drawn=9)
    with pytest.raises(TooManyBadSamples):
        report.add_drawn([], drawn=1)
    patient = BadSampleReport(10, 0.2)
    patient.add_drawn([bad(0), bad(1)], drawn=500)


def test_a_resumed_run_goes_on_with_its_file(tmp_path):
    path = tmp_path / "bad.jsonl"
    BadSampleReport(10, 1.0, path).add_drawn([bad(0), bad(1)], drawn=2)
    BadSampleReport(10, 1.0, path, keep=True).add_drawn([bad(1), bad(2)], drawn=2)
    assert [json.loads(line)["sample"] for line in path.read_text().splitlines()] == [
        "sample 0", "sample 1", "sample 2",
    ]  # fmt: skip
    BadSampleReport(10, 1.0, path)
    assert path.read_text() == ""


def test_the_summary_names_the_first_of_each_reason():
    report = BadSampleReport(10, 1.0)
    report.add_drawn([*map(bad, range(5)), bad(9, "too_short")], drawn=6)
    lines = report.summary().splitlines()
    assert lines[0].startswith("5 x truncated") and lines[4] == "    and 2 more" and "sample 9" in lines[6]
    assert report.counts() == {"truncated": 5, "too_short": 1}
