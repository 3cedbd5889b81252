# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The result of an evaluation: one typed record, as JSON and CSV, and the differences of two."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import replacing


FORMAT = 1
RESULTS, TABLE, SAMPLE_TABLE = "results.json", "results.csv", "samples.csv"
HIGHER, LOWER, NEITHER = "higher", "lower", "neither"


@dataclasses.dataclass(frozen=True)
class MetricValue:
    """
    A figure.

    Args:
        name (`str`): The metric.
        view (`str`): Size in which videos were measured.
        value (`float`): The figure.
        count (`int`): Videos that it is of.
        direction (`str`): `"higher"` or `"lower"` is better, or `"neither"`.
        interval (`list[float]`, *optional*): 95 % confidence interval, where one is known.
        floor (`float`, *optional*): The figure of controls, such as videos whose images were withheld.
        ceiling (`float`, *optional*): The figure of real videos.
        chance (`float`, *optional*): What guessing gives.
        extractor (`str`, *optional*): Feature network.
        extractor_sha256 (`str`, *optional*): Hash of its whole identity: weights, preprocessing, output.
        note (`str`, *optional*): What else there is to know.
    """

    name: str
    view: str
    value: float
    count: int
    direction: str
    interval: tuple[float, float] | None = None
    floor: float | None = None
    ceiling: float | None = None
    chance: float | None = None
    extractor: str | None = None
    extractor_sha256: str | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ShownSample:
    """
    A video of the report.

    Args:
        id (`str`): The sample.
        prompt (`str`): Its prompt.
        file (`str`): Its file, relative to the folder of the result.
        seed (`int`): Seed of its noise.
        control (`bool`): Whether it is a control.
        values (`dict[str, float]`): Its own figures.
    """

    id: str
    prompt: str
    file: str
    seed: int
    control: bool
    values: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """
    What an evaluation found, and everything that it depends on.

    Args:
        protocol (`dict`): All settings of the protocol.
        protocol_sha256 (`str`): Hash of those that decide figures.
        changed (`dict`): Settings that were changed from the protocol, with both values.
        metrics (`list[MetricValue]`): The figures.
        samples (`dict`): Numbers: `planned`, `controls`, `measured`.
        skipped (`dict[str, str]`): Videos that could not be read, and why.
        model (`str`): Where the weights are from.
        weights (`dict[str, str]`): SHA-256 of each network's weights.
        versions (`dict[str, str]`): Of the package and the libraries.
        settings (`dict`): What else the run depended on: device, precision, batch size, processes, the user's data.
        not_comparable_with (`list[str]`): What these figures do not compare with.
        shown (`list[ShownSample]`): Videos of the report.
    """

    protocol: dict[str, Any]
    protocol_sha256: str
    changed: dict[str, Any]
    metrics: tuple[MetricValue, ...]
    samples: dict[str, int]
    skipped: dict[str, str]
    model: str
    weights: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    not_comparable_with: tuple[str, ...]
    shown: tuple[ShownSample, ...]

    def save(self, folder: str | Path) -> None:
        """Writes `results.json` and `results.csv`, each whole or not at all."""
        values = {"format": FORMAT, **dataclasses.asdict(self)}
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(Path(folder) / RESULTS, text)
        columns = [field.name for field in dataclasses.fields(MetricValue) if field.name != "interval"]
        rows = []
        for metric in self.metrics:
            low, high = metric.interval or ("", "")
            values = {name: _empty(getattr(metric, name)) for name in columns}
            rows.append({"protocol": self.protocol["name"], **values, "low": low, "high": high})
        write_csv(Path(folder) / TABLE, ["protocol", *columns[:5], "low", "high", *columns[5:]], rows)

    @classmethod
    def load(cls, path: str | Path) -> "EvaluationResult":
        """
        Reads a result.

        Args:
            path (`str` or `Path`): A `results.json`, or its folder.

        Raises:
            `FileNotFoundError`: If there is none.
            `ValueError`: If it is no such file.
        """
        path = Path(path)
        path = path / RESULTS if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}: give a folder that `vimi evaluate run` wrote.")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            metrics = tuple(
                MetricValue(**{**one, "interval": tuple(one["interval"]) if one["interval"] else None})
                for one in values.pop("metrics")
            )
            shown = tuple(ShownSample(**one) for one in values.pop("shown"))
            notes = tuple(values.pop("not_comparable_with"))
            return cls(**values, metrics=metrics, shown=shown, not_comparable_with=notes)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no result of `vimi evaluate run` in format {FORMAT}: {error}.") from error

    @property
    def title(self) -> str:
        """The protocol's title, and whether it was changed."""
        return self.protocol["title"] + (" (changed)" if self.changed else "")


@dataclasses.dataclass(frozen=True)
class Difference:
    """
    A figure of two results.

    Args:
        name (`str`), view (`str`): The metric.
        a (`MetricValue` or `None`), b (`MetricValue` or `None`): Its figures.
        reason (`str`): Why they do not compare; empty if they do.
    """

    name: str
    view: str
    a: MetricValue | None
    b: MetricValue | None
    reason: str

    @property
    def change(self) -> float | None:
        """`b - a`, where both compare."""
        return None if self.reason or self.a is None or self.b is None else self.b.value - self.a.value

    @property
    def verdict(self) -> str:
        """Which is better, where they compare, and whether the intervals leave that open."""
        if self.change is None:
            return f"not comparable: {self.reason}"
        if not self.change or self.a.direction == NEITHER:
            return "equal" if not self.change else "differs"
        better = "B better" if (self.change > 0) == (self.a.direction == HIGHER) else "A better"
        if self.a.interval and self.b.interval:
            (low, high), (other_low, other_high) = self.a.interval, self.b.interval
            if low <= other_high and other_low <= high:
                return f"{better}, intervals overlap"
            return better
        return f"{better}, no interval"


def compare_results(a: EvaluationResult, b: EvaluationResult, allow_different: bool = False) -> list[Difference]:
    """
    The figures of two results beside each other.

    Args:
        a ([`EvaluationResult`]), b ([`EvaluationResult`]): The results.
        allow_different (`bool`, *optional*, defaults to `False`):
            Whether they may be of different protocols; figures are then beside each other as not comparable.

    Raises:
        `ValueError`: If the protocols differ and that is not allowed, naming the first differences.
    """
    from .protocols import _flat

    reason = ""
    if a.protocol_sha256 != b.protocol_sha256:
        one, other = _flat(a.protocol), _flat(b.protocol)
        differs = [
            f"{key} ({one.get(key)}, {other.get(key)})" for key in one | other if one.get(key) != other.get(key)
        ]
        shown = ", ".join(differs[:4]) + (f" and {len(differs) - 4} more" if len(differs) > 4 else "")
        if not allow_different:
            raise ValueError(f"The results are of different protocols: {shown}. --different shows them all the same.")
        reason = "another protocol"
    ours, theirs = ({(one.name, one.view): one for one in result.metrics} for result in (a, b))
    rows = []
    for key in dict.fromkeys((*ours, *theirs)):
        first, second = ours.get(key), theirs.get(key)
        rows.append(Difference(*key, first, second, reason or _obstacle(a, b, first, second)))
    return rows


def _obstacle(a: EvaluationResult, b: EvaluationResult, x: MetricValue | None, y: MetricValue | None) -> str:
    if x is None or y is None:
        return f"only {'B' if x is None else 'A'} has it"
    if x.extractor_sha256 != y.extractor_sha256:
        return "another feature network"
    if x.count != y.count:
        return f"{x.count} and {y.count} videos"
    data = a.settings.get("data_facts"), b.settings.get("data_facts")
    return "other data" if data[0] != data[1] else ""


def format_value(value: float | None) -> str:
    """A figure in four digits, or a dash."""
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` trials (Wilson, 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def write_csv(path: Path, columns: list[str], rows: list[Mapping[str, Any]]) -> None:
    """A table, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """A file of text, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _empty(value: Any) -> Any:
    return "" if value is None else value
