# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Plots for each axis of a grid: means, and differences to the base, with intervals and single seeds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...files import replacing
from .grid import Axis, Grid
from .statistics import Row
from .table import axis_variants, shown_measures


PLOTS = "plots"
MOST_PANELS, COLUMNS = 9, 3
INK, BASE_INK, SEED_INK = "#1f4e79", "#b04a2f", "#8a97a6"


def write_plots(grid: Grid, rows: Sequence[Row], out: str | Path) -> list[Path]:
    """
    Writes `plots/{axis}.png`, the means over seeds, and `plots/{axis}_difference.png`, the differences to the base
    seed by seed. An axis without finished cells has none.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install vimi_diffusers[eval].") from error
    folder, paths = Path(out) / PLOTS, []
    for axis in grid.axes:
        names = {variant for _, variant in axis_variants(grid, axis)}
        own = [row for row in rows if row.variant in names]
        measures = shown_measures(own, axis.measures)[:MOST_PANELS]
        for difference in (False, True) if measures else ():
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{axis.name}{'_difference' if difference else ''}.png")
            figure = _figure(grid, axis, own, measures, difference)
            with replacing(paths[-1]) as temporary:
                figure.savefig(temporary)
    return paths


def _figure(grid: Grid, axis: Axis, rows: Sequence[Row], measures: Sequence[str], difference: bool) -> Any:
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(measures))
    lines = math.ceil(len(measures) / columns)
    width = max(2.6, 0.75 * len(axis.values) + 1.2)
    figure = Figure(figsize=(columns * width + 0.4, 2.7 * lines + 0.6), dpi=120, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    base = {row.measure: row for row in rows if row.difference is None}
    for panel, measure in zip(panels, measures):
        shown = {row.variant: row for row in rows if row.measure == measure}
        _draw(panel, grid, axis, shown, base.get(measure), difference)
        panel.set_title(measure, fontsize=8)
    for panel in panels[len(measures) :]:
        panel.set_visible(False)
    what = "difference to the base, paired by seed" if difference else "mean over seeds; dashed: base"
    figure.suptitle(f"{axis.name}: {what} (n = {len(grid.seeds)}, bars: 95 % intervals)", fontsize=9)
    return figure


def _draw(panel: Any, grid: Grid, axis: Axis, rows: dict[str, Row], base: Row | None, difference: bool) -> None:
    for place, (_, variant) in enumerate(axis_variants(grid, axis)):
        row = rows.get(variant)
        if row is None:
            panel.text(place, 0.5, "failed", transform=panel.get_xaxis_transform(), rotation=90, ha="center",
                       va="center", color=SEED_INK, fontsize=8)  # fmt: skip
            continue
        summary, values = row.summary, list(row.values.values())
        if difference and row.difference is not None:
            summary = row.difference
            values = [value - base.values[seed] for seed, value in row.values.items() if base and seed in base.values]
        elif difference:
            continue  # the base is the line at 0
        if summary.mean is None:
            continue
        ink = BASE_INK if row.difference is None else INK
        spread = [place + 0.16 + (0.08 * n / max(len(values) - 1, 1)) for n in range(len(values))]
        panel.plot(spread, values, "o", color=SEED_INK, markersize=3, alpha=0.8)
        bars = None if summary.low is None else [[summary.mean - summary.low], [summary.high - summary.mean]]
        panel.errorbar(place, summary.mean, yerr=bars, fmt="s", color=ink, markersize=5, capsize=4, linewidth=1.4)
    if base:
        line = 0.0 if difference else base.summary.mean
        panel.axhline(line, color=BASE_INK, linestyle="--", linewidth=0.8, alpha=0.7)
    panel.set_xticks(
        range(len(axis.values)), list(axis.values), fontsize=8, rotation=20 if len(axis.values) > 3 else 0
    )
    panel.set_xlim(-0.5, len(axis.values) - 0.4)
    panel.tick_params(axis="y", labelsize=7)
    panel.grid(axis="y", linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
