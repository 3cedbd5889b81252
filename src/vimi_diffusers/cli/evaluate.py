# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi evaluate`: measures of trained weights."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from . import evaluate_retrieval, evaluate_run


app = typer.Typer(help="Measure trained weights and retrieval.", no_args_is_help=True)


@app.callback()
def _evaluate() -> None:
    pass


@app.command()
def held_out(
    world: Annotated[Path, typer.Option(help="Emoji world, as `vimi emoji-world build` writes it.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json and the pictures.")],
    model: Annotated[
        Optional[Path], typer.Option(help="Folder of a pipeline.", show_default="embedded weights")
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 16,
    guidance_scale: Annotated[float, typer.Option(help="Weight of the guidance, of the controls at least.")] = 3.0,
    image_guidance_scale: Annotated[
        Optional[float], typer.Option(help="Weight of the images, where the words have 1; 0 weighs both together.")
    ] = 4.0,
    limit: Annotated[
        Optional[int], typer.Option(help="At most so many concepts in each part, for a quick look.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Videos that are generated together.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Seed of samples and noise.", min=0)] = 0,
    device: Annotated[
        Optional[str], typer.Option(help="Where to run, such as cuda or cpu.", show_default="cuda if there is one")
    ] = None,
) -> None:
    """Pictures, loss and colours of concepts never trained on, with their images and without."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from transformers.utils import logging as transformers_logging

    from .. import default_checkpoint
    from ..evaluation.held_out import HeldOutSettings, evaluate_held_out

    settings = HeldOutSettings(steps, guidance_scale, image_guidance_scale or None, limit, batch_size, seed)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    diffusers_logging.disable_progress_bar()  # of loading
    transformers_logging.disable_progress_bar()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        results = evaluate_held_out(model or default_checkpoint(), world, out, settings, device, report)
    _show(results)
    typer.echo(f"{out}: results.json, {', '.join(results['pictures'].values())}")


def _show(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    losses, colours = results["held_out_loss"], results["colour_identification"]
    table = Table(
        "", "with images", "without", "true clips", "chance", title="Held-out concepts", title_justify="left"
    )
    for task in results["pictures"]:
        table.add_row(f"loss, {task}", *(f"{losses[task][which]:.4f}" for which in ("with_images", "without_images")))
    for name in ("top_1", "top_5"):
        shares = [colours[which][name] for which in ("with_images", "without_images", "true_clips", "chance")]
        label = f"own colour in {name.replace('_', ' ')} of {colours['concepts']}"
        table.add_row(label, *(f"{share:.1%}" for share in shares))
    distances = [colours[which]["distance"] for which in ("with_images", "without_images", "true_clips")]
    table.add_row("colour distance (CIELAB)", *("-" if d is None else f"{d:.1f}" for d in distances))
    Console().print(table)


app.command()(evaluate_run.run)
app.command()(evaluate_run.compare)
app.command(name="list")(evaluate_run.list_protocols)
app.command()(evaluate_retrieval.retrieval)
app.add_typer(evaluate_retrieval.ratings, name="ratings")
