# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi evaluate run`, `compare` and `list`: protocols, and their results beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from .generate import DType, _load_pipeline


if TYPE_CHECKING:
    from ..evaluation.results import Difference, EvaluationResult


def run(
    protocol: Annotated[str, typer.Argument(help="Name of a protocol (see `vimi evaluate list`), or a .yaml file.")],
    out: Annotated[Path, typer.Option(help="Folder for videos, figures and report; what is finished there is kept.")],
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Folder of a pipeline, or its name on the Hub (user/repo).", show_default="embedded weights"
        ),
    ] = None,
    data: Annotated[
        Optional[list[str]],
        typer.Option(help="NAME=PATH of a data set or file that the protocol needs; repeat it.", show_default=False),
    ] = None,
    changes: Annotated[
        Optional[list[str]],
        typer.Option(
            "--set",
            help="KEY=VALUE that differs from the protocol, such as num_samples=64; results say so.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Videos that are generated together.", min=1)] = 4,
    shown: Annotated[int, typer.Option(help="Videos of the report.", min=0)] = 12,
    device: Annotated[
        Optional[str], typer.Option(help="Where to run, such as cuda or cpu.", show_default="cuda if there is one")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Precision of the weights.")] = DType.float32,
) -> None:
    """
    Generate a protocol's videos, measure them, and write figures and a report.

    Under `accelerate launch` the videos are dealt out to the processes.
    """
    from ..evaluation.protocols import load_protocol
    from ..evaluation.running import check_inputs

    chosen = load_protocol(protocol, _changes(changes or ()))
    paths = {name: Path(path) for name, path in _pairs(data or (), "--data").items()}
    check_inputs(chosen, paths)

    import torch
    from accelerate import PartialState

    from ..evaluation.report import write_report
    from ..evaluation.running import evaluate

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    place = device or str(state.device)

    def load() -> Any:
        pipe = _load_pipeline(model, place, dtype.value)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    with _progress(state.is_main_process) as report:
        result = evaluate(
            chosen,
            load,
            out,
            paths,
            model=model or "embedded weights",
            batch_size=batch_size,
            device=place,
            shown=shown,
            state=state,
            report=report,
        )
    if state.is_main_process:
        page = write_report(out)
        _show(result)
        typer.echo(f"{out}: results.json, results.csv, samples.csv; open {page}")


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a result.")],
    b: Annotated[Path, typer.Argument(help="Folder of another.")],
    out: Annotated[Path, typer.Option(help="Folder for the page; a comparison that is there is replaced.")],
    different: Annotated[
        bool, typer.Option("--different", help="Also results of different protocols, marked as not comparable.")
    ] = False,
) -> None:
    """Show two results side by side."""
    from ..evaluation.report import write_comparison
    from ..evaluation.results import EvaluationResult, compare_results

    differences = compare_results(EvaluationResult.load(a), EvaluationResult.load(b), different)
    page = write_comparison(a, b, differences, out)
    _show_differences(differences)
    typer.echo(f"open {page}")


def list_protocols() -> None:
    """List protocols with the data that they need, and measures."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.measures import measures, required_inputs
    from ..evaluation.protocols import load_protocol, protocol_names

    table = Table("protocol", "what", "needs --data", title="Protocols", title_justify="left")
    for name in protocol_names():
        protocol = load_protocol(name)
        table.add_row(
            name, protocol.title, "\n".join(f"{key}: {text}" for key, text in required_inputs(protocol).items())
        )
    registry = Table("metric", "what", "better", "feature network", title="Metrics", title_justify="left")
    for name, measure in measures().items():
        registry.add_row(name, measure.about, measure.direction, measure.default or "")
    Console().print(table, registry)


def _pairs(values: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise ValueError(f"{option} {value!r} must be NAME=VALUE.")
        if name in pairs:
            raise ValueError(f"{option} gives {name!r} twice.")
        pairs[name] = rest
    return pairs


def _changes(values: Sequence[str]) -> dict[str, Any]:
    import yaml

    changes = {}
    for name, text in _pairs(values, "--set").items():
        try:
            changes[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {name}={text}: {' '.join(str(error).split())}") from error
    return changes


class _progress:
    """A bar for each stage, of the main process's part."""

    def __init__(self, main: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not main)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "_progress":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done)


def _show(result: "EvaluationResult") -> None:
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.results import format_value

    metrics = result.metrics
    table = Table(title=result.title, title_justify="left")
    around = [
        name for name in ("floor", "ceiling", "chance") if any(getattr(one, name) is not None for one in metrics)
    ]
    sizes = len({one.view for one in metrics}) > 1
    table.add_column("metric", no_wrap=True)
    for name in (*["size"] * sizes, "value", "95 % interval", *around, "videos", "better"):
        table.add_column(name, justify="left" if name in ("size", "better") else "right")
    for metric in metrics:
        interval = " to ".join(map(format_value, metric.interval)) if metric.interval else "–"
        values = [format_value(metric.value), interval, *(format_value(getattr(metric, name)) for name in around)]
        table.add_row(metric.name, *[metric.view] * sizes, *values, str(metric.count), metric.direction)
    console = Console()
    console.print(table)
    if result.skipped:
        told = (f"{file}: {reason}" for file, reason in result.skipped.items())
        console.print(f"{len(result.skipped)} videos could not be read:", *told, sep="\n  - ", markup=False)
    if result.not_comparable_with:
        console.print("Not comparable with:", *result.not_comparable_with, sep="\n  - ", markup=False, highlight=False)


def _show_differences(differences: Sequence["Difference"]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.results import format_value

    table = Table("metric", "size", "A", "B", "B - A", "verdict", title="Differences", title_justify="left")
    for row in differences:
        values = (format_value(one.value) if one else "–" for one in (row.a, row.b))
        change = "–" if row.change is None else f"{row.change:+.4g}"
        table.add_row(row.name, row.view, *values, change, row.verdict)
    Console().print(table)
