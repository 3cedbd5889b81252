# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Results as a folder that any browser opens, without a server or a network: figures, plots, videos; one or two."""

import html
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import whole_folder
from .results import Difference, EvaluationResult, MetricValue, format_value


TEMPLATE = Path(__file__).parents[1] / "assets" / "report.html"
PAGE, VIDEOS = "index.html", "videos"
SHORTEST_SIDE = 192  # pixels that small videos are enlarged to at least
COLOURS = ("#1f6fb2", "#c2571a")


def write_report(folder: str | Path) -> Path:
    """
    Writes `report/` into the folder of a result: `index.html` and the videos beside it. An older one is replaced.

    Args:
        folder (`str` or `Path`): What `vimi evaluate run` wrote.

    Returns:
        `Path`: the page.

    Raises:
        `FileNotFoundError`: If there is no result.
    """
    folder = Path(folder)
    result = EvaluationResult.load(folder)
    return _write(folder / "report", [folder], [result], result.title, None)


def write_comparison(a: str | Path, b: str | Path, differences: Sequence[Difference], out: str | Path) -> Path:
    """
    Writes two results side by side into a folder: figures with their differences, plots, and videos of the same
    samples beside each other.

    Args:
        a (`str` or `Path`), b (`str` or `Path`): Folders of the results.
        differences (`Sequence[Difference]`): Of [`compare_results`].
        out (`str` or `Path`): The folder; a comparison that is there is replaced.

    Returns:
        `Path`: the page.

    Raises:
        `ValueError`: If `out` holds something else than a report.
    """
    folders = [Path(a), Path(b)]
    results = [EvaluationResult.load(folder) for folder in folders]
    titles = dict.fromkeys(result.title for result in results)
    return _write(Path(out), folders, results, f"Comparison: {' and '.join(titles)}", differences)


def _write(
    out: Path,
    folders: Sequence[Path],
    results: Sequence[EvaluationResult],
    title: str,
    differences: Sequence[Difference] | None,
) -> Path:
    if out.exists() and not (out / PAGE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no report: choose another folder.")
    labels = ["A", "B"] if differences is not None else ["This result"]
    with whole_folder(out.with_name(f".{out.name}.new")) as new:
        (new / VIDEOS).mkdir()
        cards = _cards(new, folders, results)
        page = _template().render(
            title=title,
            results=[
                {
                    "result": result,
                    "label": f"{label}: {result.model}" if differences is not None else label,
                    "css": label.lower() if differences is not None else "",
                    "weights": _short_hash(result.weights),
                    "facts": _facts(result),
                }
                for label, result in zip(labels, results)
            ],
            differences=differences,
            plots=_plots(results),
            cards=cards,
            card=16 if differences is None else 24,
            number=format_value,
            interval=_interval,
            cell=lambda metric: format_value(metric.value) if metric else "–",
            signed=lambda value: "–" if value is None else f"{value:+.4g}",
        )
        (new / PAGE).write_text(page, encoding="utf-8")
    made = out.with_name(f".{out.name}.new")
    if out.exists():
        shutil.rmtree(out)
    made.rename(out)
    return out / PAGE


def _template() -> Any:
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise ImportError('The report needs Jinja2: pip install "vimi_diffusers[eval]".') from error
    return Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))


# ------------------------------------------------------------------ videos
def _cards(new: Path, folders: Sequence[Path], results: Sequence[EvaluationResult]) -> list[dict[str, Any]]:
    shown = [{sample.id: sample for sample in result.shown} for result in results]
    cards = []
    for id in dict.fromkeys(id for own in shown for id in own):
        files, notes = [], []
        for place, (folder, own) in enumerate(zip(folders, shown)):
            name = f"{VIDEOS}/{'ab'[place] if len(folders) > 1 else 'video'}-{id}.mp4"
            there = id in own and _copy(folder / own[id].file, new / name)
            files.append(name if there else None)
            if id in own:
                values = ", ".join(f"{key} {format_value(value)}" for key, value in own[id].values.items())
                label = f"{'AB'[place]}: " if len(folders) > 1 else ""
                notes.append(f"{label}seed {own[id].seed}" + (f", {values}" if values else ""))
        sample = next(own[id] for own in shown if id in own)
        cards.append({"files": files, "prompt": sample.prompt, "note": f"{id}; " + "; ".join(notes)})
    return cards


def _copy(source: Path, target: Path) -> bool:
    """The video for browsers, which do not play lossless RGB; whether it could be read."""
    from ..data.decoding import probe, read_clip
    from ..data.schema import BadSample
    from ..media import write_video

    try:
        info = probe(source)
        number = round(info.duration * info.fps) + 1
        frames = read_clip(source, number, info.height, info.width, step=1 / info.fps).frames
    except BadSample:
        return False
    scale = max(1, -(-SHORTEST_SIDE // min(info.height, info.width)))
    scale += (info.height * scale % 2 or info.width * scale % 2) and 1  # H.264 needs even sides
    write_video(frames, target, fps=info.fps, scale=scale)
    return True


# ------------------------------------------------------------------ plots
def _plots(results: Sequence[EvaluationResult]) -> list[dict[str, Any]]:
    """For each metric a row of points with intervals, and lines at floor, ceiling and chance."""
    from markupsafe import Markup

    names = dict.fromkeys((metric.name, metric.view) for result in results for metric in result.metrics)
    views = {view for _, view in names}
    plots = []
    for name, view in names:
        metrics = [
            next((one for one in result.metrics if (one.name, one.view) == (name, view)), None) for result in results
        ]
        direction = next(one.direction for one in metrics if one)
        title = name + (f", {view}" if len(views) > 1 else "")
        title += {"higher": " (higher is better)", "lower": " (lower is better)"}.get(direction, "")
        plots.append({"title": title, "svg": Markup(_plot(metrics, title))})
    return plots


def _plot(metrics: Sequence[MetricValue | None], title: str) -> str:
    rows: list[tuple[str, float, tuple[float, float] | None, str]] = []
    for place, metric in enumerate(metrics):
        if metric is not None:
            label = "AB"[place] if len(metrics) > 1 else "this result"
            rows.append((label, metric.value, metric.interval, COLOURS[place]))
    for name in ("floor", "ceiling", "chance"):
        found = [getattr(metric, name) for metric in metrics if metric is not None]
        if found and found[0] is not None:
            rows.append((name, found[0], None, "#7a838d"))
    low, high = _range([value for _, value, interval, _ in rows for value in (value, *(interval or ()))])

    def x(value: float) -> float:
        return round(84 + (value - low) / (high - low) * 200, 1)

    parts = []
    for number, (label, value, interval, colour) in enumerate(rows):
        y = 16 + 24 * number
        parts.append(f'<text x="0" y="{y + 4}">{html.escape(label)}</text>')
        parts.append(f'<line x1="84" x2="284" y1="{y}" y2="{y}" stroke="#d9dde3"/>')
        if interval:
            ends = f'x1="{x(interval[0])}" x2="{x(interval[1])}"'
            parts.append(f'<line {ends} y1="{y}" y2="{y}" stroke="{colour}" stroke-width="4" stroke-opacity=".4"/>')
        parts.append(f'<circle cx="{x(value)}" cy="{y}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="296" y="{y + 4}">{format_value(value)}</text>')
    bottom = 16 + 24 * len(rows)
    parts.append(f'<text x="84" y="{bottom + 4}" fill-opacity=".6">{format_value(low)}</text>')
    parts.append(f'<text x="284" y="{bottom + 4}" text-anchor="end" fill-opacity=".6">{format_value(high)}</text>')
    head = f'<svg viewBox="0 0 350 {bottom + 10}" role="img" aria-label="{html.escape(title)}">'
    return head + "".join(parts) + "</svg>"


def _range(values: Iterable[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if 0 <= low and high <= 1:
        return 0.0, 1.0
    if low >= 0:
        low = 0.0
    return low, high + (high - low) * 0.05 or low + 1.0


# ------------------------------------------------------------------ words
def _facts(result: EvaluationResult) -> list[tuple[str, str]]:
    protocol = result.protocol
    height, width = protocol["size"]
    rows = [
        ("Protocol", f"{protocol['name']}, SHA-256 {result.protocol_sha256}"),
        ("Samples", _listed(result.samples)),
        ("Size", f"{protocol['num_frames']} frames of {width}x{height} at {protocol['fps']:g} fps"),
        ("Sampling", _listed(protocol["sampling"])),
        ("Retrieved pairs", str(protocol["retrieved_pairs"])),
        ("Seed", str(protocol["seed"])),
        *((f"Weights, {name}", sha256) for name, sha256 in result.weights.items()),
        ("Versions", _listed(result.versions)),
    ]
    for key, value in result.settings.items():
        rows.append((key.replace("_", " ").capitalize(), _listed(value) if isinstance(value, Mapping) else str(value)))
    for metric in {one.name: one for one in result.metrics if one.extractor_sha256}.values():
        rows.append((f"Features, {metric.name}", f"{metric.extractor}, SHA-256 {metric.extractor_sha256}"))
    return rows


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _interval(metric: MetricValue) -> str:
    return "–" if metric.interval is None else " to ".join(map(format_value, metric.interval))


def _short_hash(weights: Mapping[str, str]) -> str:
    return (weights.get("transformer") or next(iter(weights.values()), "unknown"))[:12]
