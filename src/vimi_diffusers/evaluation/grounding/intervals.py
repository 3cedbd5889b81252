# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Values with 95 % confidence intervals: Wilson's for shares, the bootstrap's for means and ratios of means."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np


Z = 1.959963984540054  # of a two-sided 95 % interval
RESAMPLES = 2000


class Value(TypedDict):
    """A number, the samples that it is of, and its interval; `None` where there is no sample."""

    value: float | None
    count: int
    low: float | None
    high: float | None


def share(successes: Sequence[bool]) -> Value:
    """The share of true entries, with the Wilson score interval."""
    count = len(successes)
    if not count:
        return Value(value=None, count=0, low=None, high=None)
    mean = sum(map(bool, successes)) / count
    scale = 1 + Z**2 / count
    centre = (mean + Z**2 / (2 * count)) / scale
    half = Z / scale * math.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2))
    return Value(value=mean, count=count, low=max(0.0, centre - half), high=min(1.0, centre + half))


def mean(values: Sequence[float], over: Sequence[float] | None = None) -> Value:
    """
    The mean with a percentile bootstrap interval over samples, the same at every call.

    Args:
        values (`Sequence[float]`): One for each sample.
        over (`Sequence[float]`, *optional*): One for each sample; the result is the ratio of both means.
    """
    count = len(values)
    if not count:
        return Value(value=None, count=0, low=None, high=None)
    above, below = np.asarray(values, float), np.ones(count) if over is None else np.asarray(over, float)
    if below.sum() == 0:
        return Value(value=None, count=count, low=None, high=None)
    random = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        rows = random.integers(0, count, count)
        means.append(above[rows].sum() / max(below[rows].sum(), 1e-12))
    low, high = np.quantile(means, (0.025, 0.975))
    return Value(value=float(above.sum() / below.sum()), count=count, low=float(low), high=float(high))
