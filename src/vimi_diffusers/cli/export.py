# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi export`: a pipeline as a folder to share, with a model card and, if wanted, with its code."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def export(
    model: Annotated[str, typer.Argument(help="Folder of a pipeline, or its name on the Hub (user/repo).")],
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist, or be empty.")],
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Add the code, to load with trust_remote_code instead of this package.")
    ] = False,
    facts: Annotated[
        Optional[Path],
        typer.Option(help="JSON file of what the model card says.", show_default="model_card.json of the model"),
    ] = None,
    repo_id: Annotated[
        Optional[str], typer.Option(help="Name that the model card tells readers to load.", show_default="OUT's name")
    ] = None,
    revision: Annotated[Optional[str], typer.Option(help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Copy a pipeline into a folder to share: weights, model card and, with --with-code, its code."""
    from ..export import export as export_pipeline
    from ..model_card import ModelCardFacts

    files = export_pipeline(
        model,
        out,
        with_code=with_code,
        facts=None if facts is None else ModelCardFacts.from_file(facts),
        repo_id=repo_id,
        revision=revision,
    )
    size = sum((out / name).stat().st_size for name in files)
    typer.echo(f"{out}: {len(files)} files, {size / 1e6:.1f} MB")
    if with_code:
        typer.echo(
            "Without vimi_diffusers it loads with DiffusionPipeline.from_pretrained("
            f'"{out}", custom_pipeline="pipeline", trust_remote_code=True).'
        )
