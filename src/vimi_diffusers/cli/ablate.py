# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi ablate`: trains and measures a grid, and writes one table."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def ablate(
    grid: Annotated[Path, typer.Argument(help="YAML file of the grid.")],
    out: Annotated[Path, typer.Option(help="Folder for cells, table and plots; a repeated call goes on in it.")],
    train_data_dir: Annotated[
        Optional[Path], typer.Option(help="Training data, instead of the grid's own.", show_default=False)
    ] = None,
    devices: Annotated[
        Optional[str],
        typer.Option(
            help="Where cells run, one on each at a time: cuda:0,cuda:1 or cpu,cpu.", show_default="all GPUs"
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the grid, list its cells and stop.")] = False,
) -> None:
    """Train and measure a grid of small models: one table with seeds, intervals and plots."""
    from ..evaluation.ablations import Grid, run_grid, summarise_grid
    from ..evaluation.ablations.plots import write_plots
    from ..evaluation.ablations.runner import check_devices
    from ..evaluation.ablations.table import write_table

    chosen = devices.split(",") if devices else _all_devices()
    check_devices(chosen)
    own = {"train_data_dir": str(train_data_dir)} if train_data_dir else {}
    cells = Grid.load(grid, own)
    number = len({(cell.training_digest, cell.evaluation_digest) for cell in cells.cells})
    typer.echo(f"{len(cells.axes)} axes, {len(cells.seeds)} seeds, {number} cells on {', '.join(chosen)}", err=True)
    if check:
        for cell in cells.cells:
            typer.echo(f"{cell.training_digest}  seed {cell.seed}  {cells.name(cell.assignment)}")
        return

    def report(done: int, total: int, message: str) -> None:
        typer.echo(f"[{done}/{total}] {message}", err=True)

    statuses = run_grid(cells, out, chosen, report)
    rows = summarise_grid(cells, statuses)
    written = [*write_table(cells, statuses, rows, out), *write_plots(cells, rows, out)]
    typer.echo(f"{out}: {', '.join(str(path.relative_to(out)) for path in written)}")
    if failed := [status for status in statuses if status.results is None]:
        first = failed[0]
        raise ValueError(
            f"{len(failed)} of {len(statuses)} cells failed, the first {cells.name(first.cell.assignment)} with seed "
            f"{first.cell.seed}: {first.error}. The table names them; the same call tries them again."
        )


def _all_devices() -> list[str]:
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
