# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ablations: a grid of trainings, each in a process of its own, and one table of what differs (paper section 0.5)."""

from .grid import Axis, Cell, Grid
from .options import EvaluationOptions, WorldOptions
from .runner import CellStatus, run_grid
from .statistics import Summary, paired_difference, summarise, summarise_grid


__all__ = [
    "Axis",
    "Cell",
    "CellStatus",
    "EvaluationOptions",
    "Grid",
    "Summary",
    "WorldOptions",
    "paired_difference",
    "run_grid",
    "summarise",
    "summarise_grid",
]
