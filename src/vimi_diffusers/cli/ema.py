# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi ema`: a run's averaged weights with another averaging length, after training."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def ema(
    run: Annotated[Path, typer.Argument(help="output_dir of a run with ema_profiles.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist, or be empty.")],
    sigma_rel: Annotated[
        float, typer.Option(help="Width of the average as a share of the training time, such as 0.05 or 0.15.")
    ],
    step: Annotated[
        Optional[int], typer.Option(help="Step of a snapshot to end at.", show_default="the last one")
    ] = None,
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Pipeline (or folder of LoRA weights) that the run trained, for what was not averaged.",
            show_default="what the run wrote at its end",
        ),
    ] = None,
) -> None:
    """Make a pipeline of a run's snapshots, averaged over another length (EDM2's post-hoc EMA)."""
    from ..training.ema import save_reconstruction

    error = save_reconstruction(run, out, sigma_rel, step=step, model=model)
    typer.echo(f"{out}: sigma_rel {sigma_rel:g}, its profile fitted to {error:.2%}")
