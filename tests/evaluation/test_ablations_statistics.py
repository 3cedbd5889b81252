import csv
import json
import math

import numpy as np
import pytest
from ablation_grids import write_grid
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vimi_diffusers.evaluation.ablations import CellStatus, Grid, paired_difference, summarise, summarise_grid
from vimi_diffusers.evaluation.ablations.plots import write_plots
from vimi_diffusers.evaluation.ablations.table import markdown, write_table


numbers = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


@given(st.lists(numbers, min_size=2, max_size=12).filter(lambda values: len(set(values)) > 1))
def test_the_interval_is_students(values):
    summary = summarise(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (summary.mean, summary.low, summary.high) == pytest.approx((np.mean(values), low, high), rel=1e-9, abs=1e-9)
    assert summary.count == len(values)


def test_an_interval_by_hand():
    summary = summarise([1.0, 2.0, 3.0])  # deviation 1, so 4.30265 / sqrt(3) to each side
    assert summary.mean == 2 and summary.high - 2 == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert 2 - summary.low == pytest.approx(summary.high - 2)


def test_too_few_values_have_no_interval():
    assert summarise([]).mean is None
    one = summarise([0.5])
    assert (one.mean, one.low, one.high, one.count) == (0.5, None, None, 1)
    diverged = summarise([0.5, math.nan])
    assert math.isnan(diverged.mean) and diverged.low is None


def test_differences_are_paired_by_seed():
    base = {0: 1.0, 1: 2.0, 2: 4.0, 7: 100.0}
    other = {2: 4.5, 0: 1.25, 1: 2.75, 9: -100.0}
    difference = paired_difference(other, base)
    test = stats.ttest_rel([1.25, 2.75, 4.5], [1.0, 2.0, 4.0])
    interval = test.confidence_interval(0.95)
    assert difference.mean == pytest.approx(0.5) and difference.count == 3
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


AXES = {
    "a": {"base": "one", "values": {"one": {}, "two": {"training": {"learning_rate": 0.5}}}},
    "b": {"values": {"x": {}, "y": {"data": {"pairs": 1}}}, "measures": ["loss"]},
}


@pytest.fixture
def finished(world, tmp_path):
    """A grid with figures made up from cell and seed: y, of which one cell failed, is 0.25 above the base."""
    grid = Grid.load(write_grid(tmp_path, world, AXES, seeds=[0, 1, 2]))
    statuses = []
    for cell in grid.cells:
        loss = (
            1
            + 0.1 * cell.seed
            + 0.25 * (cell.assignment["b"] == "y")
            - 0.5 * cell.seed * (cell.assignment["a"] == "two")
        )
        results = {
            "figures": {"loss": loss, "top_1": 0.5}, "steps": 8, "train_seconds": 2.0 + cell.seed,
            "evaluation_seconds": 1.0, "parameters": 10, "resumed_at_step": 0,
        }  # fmt: skip
        failed = cell.assignment["b"] == "y" and cell.seed == 1
        folder = tmp_path / cell.training_digest
        statuses.append(CellStatus(cell, folder, None, "no memory") if failed else CellStatus(cell, folder, results))
    return grid, statuses


def test_the_table_by_hand(finished, tmp_path):
    grid, statuses = finished
    rows = summarise_grid(grid, statuses)
    by_name = {(row.variant, row.measure): row for row in rows}
    assert list(by_name) == [(variant, m) for variant in ("base", "a=two", "b=y") for m in ("loss", "top_1")]
    assert by_name["base", "loss"].summary == summarise([1.0, 1.1, 1.2])
    assert by_name["base", "loss"].difference is None and by_name["base", "loss"].train_seconds == 3
    two = by_name["a=two", "loss"].difference
    assert two.mean == pytest.approx(-0.5) and (two.low, two.high) == pytest.approx(
        stats.t.interval(0.95, 2, -0.5, 0.5 / math.sqrt(3))
    )
    lost = by_name["b=y", "loss"]
    assert lost.summary.count == 2 and lost.seeds == 3 and lost.train_seconds == 3
    assert lost.difference.mean == pytest.approx(0.25) and lost.difference.high == pytest.approx(0.25)

    write_table(grid, statuses, rows, tmp_path)
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(lines) == 6 and lines[2]["a"] == "two" and lines[2]["b"] == "x" and lines[2]["seeds"] == "3"
    assert float(lines[2]["difference_low"]) == two.low and lines[0]["difference"] == ""
    content = json.loads((tmp_path / "table.json").read_text())
    assert [row["measure"] for row in content["rows"]] == ["loss", "top_1"] * 3
    errors = [(cell["variant"], cell["seed"], cell["error"]) for cell in content["cells"] if "error" in cell]
    assert errors == [("b=y", 1, "no memory")]


def test_the_markdown_names_failures_and_marks_what_is_sure(finished):
    grid, statuses = finished
    text = markdown(grid, statuses, summarise_grid(grid, statuses))
    assert "1 of 9 cells failed" in text and "- b=y, seed 1: no memory" in text
    lines = text.splitlines()
    section = lines[lines.index("## b") :]
    assert section[2] == "| | x (base) | y |"
    assert section[4].startswith("| loss | 1.1 [") and "Δ +0.25" in section[4] and section[4].endswith("* |")
    assert section[5] == "| seeds | 3 | 2 of 3 |"  # the axis shows the loss alone
    assert "* |" not in lines[lines.index("## a") + 4]  # an interval from -1.7 to 0.7


def test_a_figure_that_is_no_number_stays_valid_json(finished, tmp_path):
    grid, statuses = finished
    statuses[0].results["figures"]["loss"] = math.nan
    write_table(grid, statuses, summarise_grid(grid, statuses), tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "table.json").read_text(), parse_constant=refuse)


def test_each_axis_has_its_plots(finished, tmp_path):
    grid, statuses = finished
    paths = write_plots(grid, summarise_grid(grid, statuses), tmp_path)
    assert [path.name for path in paths] == ["a.png", "a_difference.png", "b.png", "b_difference.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert sorted((tmp_path / "plots").iterdir()) == sorted(paths)
