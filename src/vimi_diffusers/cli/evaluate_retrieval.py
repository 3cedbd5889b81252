# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi evaluate retrieval` and `vimi evaluate ratings`: measures of what prompts retrieve."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer


ratings = typer.Typer(help="Ratings of retrieved pairs by people.", no_args_is_help=True)


def retrieval(
    world: Annotated[Path, typer.Option(help="Emoji world, as `vimi emoji-world build` writes it.")],
    out: Annotated[Path, typer.Option(help="Folder for retrieval.json, retrieval.csv and retrieval.md.")],
    encoder: Annotated[str, typer.Option(help="Text encoder: minilm, a name on the Hub, or a folder.")] = "minilm",
    device: Annotated[
        Optional[str], typer.Option(help="Where the encoder runs.", show_default="cuda if there is one")
    ] = None,
) -> None:
    """Whether the right concept and place are found: BM25, dense and hybrid, by the text that is indexed."""
    from rich.console import Console
    from rich.progress import Progress

    from ..evaluation.retrieval import evaluate_retrieval
    from ..retrieval.encoder import Encoder

    if not world.is_dir():
        raise FileNotFoundError(
            f"There is no emoji world at {world}: build one with `vimi emoji-world build {world}`."
        )
    loaded = Encoder(encoder, device=device)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("indexes", total=None)
        results = evaluate_retrieval(
            world, out, loaded, lambda stage, done, total: progress.update(task, completed=done, total=total)
        )
    _show(results)
    typer.echo(f"{out}: retrieval.json, retrieval.csv, retrieval.md")


def _show(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.retrieval import MEASURES

    table = Table(
        "prompts",
        "search",
        "indexed",
        "number",
        *MEASURES,
        title="Right in %, with 95 % intervals",
        title_justify="left",
    )
    last = None
    for row in results["rows"]:
        if last not in (None, row["prompts"]):
            table.add_section()
        last = row["prompts"]
        figures = (
            f"{100 * row[one]['share']:.1f} ({100 * row[one]['low']:.0f}-{100 * row[one]['high']:.0f})"
            for one in MEASURES
        )
        table.add_row(last, row["system"], row["indexed"], str(row["number"]), *figures)
    Console().print(table)


@ratings.command()
def export(
    memory: Annotated[Path, typer.Argument(help="Folder of a saved memory.")],
    prompts: Annotated[Path, typer.Argument(help="CSV file with the columns prompt_id and prompt.")],
    out: Annotated[Path, typer.Option(help="New folder for rate.html, items.csv and key.csv.")],
    k: Annotated[int, typer.Option("--k", help="Pairs of each kind for each prompt.", min=1)] = 4,
    dense: Annotated[
        Optional[Path], typer.Option(help="Folder of a dense index of the memory, whose pairs are rated too.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order.", min=0)] = 0,
) -> None:
    """Write a page on which people rate the pairs that prompts retrieve, without knowing what found them."""
    from ..evaluation.ratings import export_ratings, read_prompts
    from ..retrieval import ImageTextMemory

    asked = read_prompts(prompts)
    opened = ImageTextMemory.load(memory)
    found = {"bm25": opened.search_batch(list(asked.values()), k)}
    if dense is not None:
        from ..retrieval.dense import DenseRetriever

        found["dense"] = opened.search_batch(list(asked.values()), k, retriever=DenseRetriever.load(dense))
    items = export_ratings(opened, asked, found, out, seed)
    typer.echo(f"{out}: {len(items)} items of {len(asked)} prompts; send rate.html, keep key.csv")


@ratings.command()
def correlate(
    export: Annotated[Path, typer.Argument(help="Folder that `vimi evaluate ratings export` wrote.")],
    files: Annotated[list[Path], typer.Argument(help="CSV files of ratings, one or more for each rater.")],
    scores: Annotated[Path, typer.Option(help="CSV file with the columns prompt_id and score.")],
    out: Annotated[Path, typer.Option(help="Folder for correlation.json and prompts.csv.")],
    system: Annotated[
        Optional[str], typer.Option(help="Whose pairs the videos were generated with, if the export has several.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0)] = 0,
) -> None:
    """Compare ratings that came back with scores of what was generated."""
    from ..evaluation.ratings import correlate_ratings

    results = correlate_ratings(export, files, scores, out, system, seed)
    alpha = results["krippendorff_alpha"]
    agreement = "not defined" if alpha is None else f"{alpha:.3f}"
    typer.echo(f"{results['prompts']} prompts, {len(results['raters'])} raters, Krippendorff's alpha {agreement}")
    for name in ("spearman", "kendall"):
        value = results[name]
        typer.echo(f"{name} {value['value']:.3f} (95 % interval {value['low']:.3f} to {value['high']:.3f})")
    typer.echo(f"{out}: correlation.json, prompts.csv")
