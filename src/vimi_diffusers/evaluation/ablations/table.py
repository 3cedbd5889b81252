# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The table of a grid as CSV, JSON and Markdown."""

import csv
import dataclasses
import io
import json
import math
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ... import __version__
from ...files import replacing
from .grid import Axis, Grid
from .runner import CellStatus
from .statistics import Row, Summary


TABLE = "table"
COLUMNS = (
    "variant", "measure", "mean", "low", "high", "seeds", "difference", "difference_low", "difference_high",
    "pairs", "steps", "train_seconds", "evaluation_seconds", "parameters",
)  # fmt: skip


def write_table(grid: Grid, statuses: Sequence[CellStatus], rows: Sequence[Row], out: str | Path) -> list[Path]:
    """
    Writes `table.csv` (a line for each measure of each variant), `table.json` (also single cells, settings and
    versions) and `table.md` (a section for each axis). Each file appears whole or not at all.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    contents = {"csv": _csv(grid, rows), "json": _json(grid, statuses, rows), "md": markdown(grid, statuses, rows)}
    paths = []
    for suffix, text in contents.items():
        paths.append(out / f"{TABLE}.{suffix}")
        with replacing(paths[-1]) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return paths


def _csv(grid: Grid, rows: Iterable[Row]) -> str:
    axes = [axis.name for axis in grid.axes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*axes, *COLUMNS])
    for row in rows:
        mean, difference = row.summary, row.difference or Summary(None, None, None, 0)
        values = [
            row.variant, row.measure, mean.mean, mean.low, mean.high, mean.count,
            difference.mean, difference.low, difference.high, difference.count,
            row.steps, row.train_seconds, row.evaluation_seconds, row.parameters,
        ]  # fmt: skip
        writer.writerow([*(row.assignment[axis] for axis in axes), *("" if v is None else v for v in values)])
    return text.getvalue()


def _json(grid: Grid, statuses: Iterable[CellStatus], rows: Iterable[Row]) -> str:
    cells = [
        {
            "variant": grid.name(status.cell.assignment),
            "seed": status.cell.seed,
            "folder": status.folder.name,
            "settings": status.cell.settings(),
            **({"results": status.results} if status.results else {"error": status.error}),
        }
        for status in statuses
    ]
    content = {
        "design": grid.design,
        "seeds": list(grid.seeds),
        "base": grid.base_assignment,
        "axes": {axis.name: list(axis.values) for axis in grid.axes},
        "rows": [dataclasses.asdict(row) for row in rows],
        "cells": cells,
        "versions": {
            "vimi_diffusers": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers", "numpy", "scipy")},
        },
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON knows no `nan`."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def markdown(grid: Grid, statuses: Sequence[CellStatus], rows: Sequence[Row]) -> str:
    """The table to read: failures, then each axis with its values under one another."""
    by_variant: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_variant.setdefault(row.variant, {})[row.measure] = row
    lines = ["# Ablations", ""]
    lines += [
        f"Seeds: {', '.join(map(str, grid.seeds))}. Mean over seeds [95 % interval, Student's t]; "
        "after Δ the difference to the base, paired by seed, with its interval; * where that leaves out 0.",
        "The intervals are for one comparison each: among many, some leave out 0 by chance.",
        "",
    ]
    if failed := [status for status in statuses if status.results is None]:
        lines += [f"**{len(failed)} of {len(statuses)} cells failed and are not in the means:**", ""]
        for status in failed:
            lines.append(f"- {grid.name(status.cell.assignment)}, seed {status.cell.seed}: {status.error}")
        lines.append("")
    if grid.design == "product":
        lines += _section("All combinations", [(name, name) for name in by_variant], by_variant, ())
    else:
        for axis in grid.axes:
            lines += _section(axis.name, axis_variants(grid, axis), by_variant, axis.measures)
    return "\n".join(lines)


def axis_variants(grid: Grid, axis: Axis) -> list[tuple[str, str]]:
    """Each value of an axis, and the name of the variant that has it while all else is the base's."""
    return [(value, grid.name({**grid.base_assignment, axis.name: value})) for value in axis.values]


def shown_measures(rows: Iterable[Row], wanted: Sequence[str]) -> list[str]:
    """`wanted`, or all measures but the ones of true clips, which no variant changes."""
    there = list(dict.fromkeys(row.measure for row in rows))
    return [name for name in wanted if name in there] or [name for name in there if not name.endswith("_true_clips")]


def _section(
    title: str,
    variants: Sequence[tuple[str, str]],
    by_variant: dict[str, dict[str, Row]],
    wanted: Sequence[str],
) -> list[str]:
    measures = shown_measures((row for own in by_variant.values() for row in own.values()), wanted)
    columns = [(value, by_variant.get(variant, {})) for value, variant in variants]
    heads = [
        f"{value} (base)" if own and next(iter(own.values())).difference is None else value for value, own in columns
    ]
    lines = [f"## {title}", "", f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for measure in measures:
        lines.append(f"| {measure} | {' | '.join(_cell(own.get(measure)) for _, own in columns)} |")
    for name, show in (("seeds", _seeds), ("steps", _steps), ("seconds of training", _seconds)):
        shown = [show(next(iter(own.values()))) if own else "failed" for _, own in columns]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return [*lines, ""]


def _seeds(row: Row) -> str:
    count = row.summary.count
    return str(count) if count == row.seeds else f"{count} of {row.seeds}"


def _steps(row: Row) -> str:
    return str(row.steps)


def _seconds(row: Row) -> str:
    return "" if row.train_seconds is None else f"{row.train_seconds:.0f}"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    text = f"{row.summary.mean:.4g}{_interval(row.summary, '.4g')}"
    if row.difference is None or row.difference.mean is None:
        return text
    difference = row.difference
    sure = difference.low is not None and (difference.low > 0 or difference.high < 0)
    return f"{text}; Δ {difference.mean:+.2g}{_interval(difference, '+.2g')}{'*' if sure else ''}"


def _interval(summary: Summary, form: str) -> str:
    return "" if summary.low is None else f" [{summary.low:{form}}, {summary.high:{form}}]"
