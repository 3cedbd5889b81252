# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Means over seeds with 95 % intervals, and differences to the base seed by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .grid import Grid
from .runner import CellStatus


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """
    A mean and its interval.

    Args:
        mean (`float`, *optional*): `None` without values.
        low (`float`, *optional*), high (`float`, *optional*):
            Student's t interval of the mean, 95 %; `None` for fewer than two values.
        count (`int`): Number of values.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Row:
    """
    One measure of one variant.

    Args:
        variant (`str`): Its name, see [`~Grid.name`].
        assignment (`dict[str, str]`): Its value on each axis.
        measure (`str`): The measure.
        values (`dict[int, float]`): By seed.
        summary ([`Summary`]): Over the seeds.
        difference ([`Summary`], *optional*): To the base, over the seeds that both have; `None` for the base.
        seeds (`int`): Seeds that were asked for.
        steps (`int`, *optional*): Steps of each training.
        train_seconds (`float`, *optional*), evaluation_seconds (`float`, *optional*): Mean over the cells.
        parameters (`int`, *optional*): Of the model that trains.
    """

    variant: str
    assignment: dict[str, str]
    measure: str
    values: dict[int, float]
    summary: Summary
    difference: Summary | None
    seeds: int
    steps: int | None
    train_seconds: float | None
    evaluation_seconds: float | None
    parameters: int | None


def summarise(values: Sequence[float]) -> Summary:
    """
    The mean of values and its t interval. Figures that are not finite, of a training that diverged, make it `nan`
    instead of being left out.
    """
    count = len(values)
    if not count:
        return Summary(None, None, None, 0)
    mean = math.fsum(values) / count
    if count == 1 or not math.isfinite(mean):
        return Summary(mean, None, None, count)
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
    return Summary(mean, mean - half, mean + half, count)


def paired_difference(values: Mapping[int, float], base: Mapping[int, float]) -> Summary:
    """`values` minus `base`, seed by seed, over the seeds that both have: what a seed does to both cancels out."""
    return summarise([values[seed] - base[seed] for seed in sorted(set(values) & set(base))])


def summarise_grid(grid: Grid, statuses: Sequence[CellStatus]) -> list[Row]:
    """
    The rows of the table, variant by variant in the grid's order.

    Args:
        grid ([`Grid`]): The grid.
        statuses (`Sequence[CellStatus]`): Of [`run_grid`].
    """
    by_variant: dict[str, list[CellStatus]] = {grid.name(each): [] for each in grid.assignments()}
    for status in statuses:
        by_variant[grid.name(status.cell.assignment)].append(status)
    base = _values(by_variant[grid.name(grid.base_assignment)])
    rows = []
    for variant, own in by_variant.items():
        finished = [status.results for status in own if status.results]
        assignment = own[0].cell.assignment
        is_base = assignment == grid.base_assignment
        for measure, values in _values(own).items():
            rows.append(
                Row(
                    variant,
                    assignment,
                    measure,
                    values,
                    summarise([values[seed] for seed in sorted(values)]),
                    None if is_base else paired_difference(values, base.get(measure, {})),
                    len(own),
                    finished[0]["steps"],
                    _mean(finished, "train_seconds"),
                    _mean(finished, "evaluation_seconds"),
                    finished[0]["parameters"],
                )
            )
    return rows


def _values(statuses: Sequence[CellStatus]) -> dict[str, dict[int, float]]:
    """By measure and seed."""
    values: dict[str, dict[int, float]] = {}
    for status in statuses:
        for measure, value in (status.results or {}).get("figures", {}).items():
            values.setdefault(measure, {})[status.cell.seed] = value
    return values


def _mean(results: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [each[name] for each in results if each[name] is not None]
    return round(math.fsum(known) / len(known), 3) if known else None
