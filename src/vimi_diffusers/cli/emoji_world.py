# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi emoji-world`: build the embedded data set from its sources."""

from pathlib import Path
from typing import Annotated

import typer


app = typer.Typer(help="The embedded data set of drawings, moving subjects and places.", no_args_is_help=True)


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist, or be empty.")],
    size: Annotated[int, typer.Option(help="Side of pictures and clip frames in pixels, 16 to 256.")] = 64,
    photos: Annotated[
        bool, typer.Option("--photos", help="Add five photos of places; they come from a Debian package.")
    ] = False,
    npm_dir: Annotated[
        Path | None,
        typer.Option(help="Folder whose node_modules holds the packages, instead of fetching them with npm."),
    ] = None,
) -> None:
    """Fetch the source packages once, check them, and draw emoji world into OUT."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ..emoji_world.build import build_emoji_world
    from ..emoji_world.sources import SourceError

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            tasks = {}

            def report(stage: str, done: int, steps: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=steps)
                progress.update(tasks[stage], completed=done)

            manifest = build_emoji_world(out, size=size, photos=photos, npm_dir=npm_dir, report=report)
    except (SourceError, OSError, ValueError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    counts, megabytes = manifest["counts"], sum(file["bytes"] for file in manifest["files"]) / 1e6
    typer.echo(
        f"{out}: {counts['concepts_with_images']} concepts, {counts['pairs']} pairs, {counts['clips']} clips, "
        f"{counts['places']} places, {megabytes:.1f} MB"
    )
