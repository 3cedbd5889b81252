# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi memory`: build a memory of image-text pairs, extend, search, check and share it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer


app = typer.Typer(help="Build, search and share a memory of image-text pairs.", no_args_is_help=True)

Source = Annotated[
    str,
    typer.Argument(
        help="Image folder (metadata.jsonl), tar shards (folder or pattern), parquet (file or folder), or data set on "
        "disk or on the Hub."
    ),
]
Memory = Annotated[str, typer.Argument(help="Folder of a memory, or its name on the Hub.")]
Config = Annotated[Optional[str], typer.Option(help="Configuration of a data set with several.")]
Split = Annotated[str, typer.Option(help="Split of a data set.")]
ImageColumn = Annotated[str, typer.Option(help="Column of a data set with the images.")]
TextColumn = Annotated[str, typer.Option(help="Column of a data set, or field of a shard's json, with the texts.")]
IdColumn = Annotated[Optional[str], typer.Option(help="Column with unique ids.", show_default="the row number")]
BadImages = Annotated[str, typer.Option(help="Images that cannot be decoded: raise, drop, or keep all unseen.")]


@app.command()
def build(
    source: Source,
    out: Annotated[Path, typer.Argument(help="Folder for the memory; an older memory there is replaced.")],
    config: Config = None,
    split: Split = "train",
    image_column: ImageColumn = "image",
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    bad_images: BadImages = "raise",
) -> None:
    """Build a memory, as a stream: any number of pairs."""
    from ..retrieval import ImageTextMemory
    from ..retrieval.memory.sources import open_rows

    rows = open_rows(source, config, split, image_column, text_column, id_column)
    memory = ImageTextMemory.create(out, _shown(rows), bad_images=bad_images)
    dropped = f" ({memory.num_dropped} with an empty text or a bad image left out)" if memory.num_dropped else ""
    typer.echo(f"{out}: {len(memory)} pairs{dropped}, {_megabytes(out):.1f} MB")


@app.command()
def add(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    source: Source,
    config: Config = None,
    split: Split = "train",
    image_column: ImageColumn = "image",
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    bad_images: BadImages = "raise",
) -> None:
    """Append pairs to a memory, all or none of them."""
    from ..retrieval import ImageTextMemory
    from ..retrieval.memory.sources import open_rows

    opened = ImageTextMemory.load(memory, verify=False)
    rows = open_rows(source, config, split, image_column, text_column, id_column)
    added = opened.add(_shown(rows), bad_images=bad_images)
    typer.echo(f"{memory}: {added} pairs more, {len(opened)} in all, {_megabytes(memory):.1f} MB")


@app.command()
def search(
    memory: Memory,
    prompt: Annotated[str, typer.Argument(help="What to search for.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Number of pairs of each kind.")] = 1,
    remote: Annotated[bool, typer.Option("--remote", help="Leave the pairs on the Hub.")] = False,
) -> None:
    """Show the pairs that a prompt retrieves."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..retrieval import ImageTextMemory

    opened = ImageTextMemory.from_pretrained(memory, images="remote" if remote else "download")
    pairs = opened.search(prompt, k=k)
    if not pairs:
        typer.echo(f"No pair shares a word with {prompt!r}.")
        return
    table = Table("score", "kind", "id", "text")
    for pair in pairs:
        # Text, not str: what stands in brackets in a caption is no markup
        table.add_row(f"{pair.score:.3f}", pair.kind or "", Text(pair.id), Text(pair.text))
    Console().print(table)


@app.command()
def info(memory: Memory) -> None:
    """Show what a memory holds and how it is searched."""
    from ..retrieval import ImageTextMemory

    opened = ImageTextMemory.from_pretrained(memory, images="remote")
    for name, value in opened.info().items():
        typer.echo(f"{name}: {value}")


@app.command()
def verify(memory: Annotated[Path, typer.Argument(help="Folder of a memory.")]) -> None:
    """Compare all files of a memory with their hashes; exit code 1 and the file's name if one is damaged."""
    from ..retrieval import ImageTextMemory

    opened = ImageTextMemory.load(memory, verify=True)
    typer.echo(f"{memory}: {len(opened)} pairs, all files are as they were written")


@app.command()
def push(
    memory: Annotated[Path, typer.Argument(help="Folder of a memory.")],
    name: Annotated[str, typer.Argument(help="Data set on the Hub, such as user/memory; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new data set private.")] = False,
    revision: Annotated[Optional[str], typer.Option(help="Branch, made if it is not there.")] = None,
    message: Annotated[Optional[str], typer.Option(help="Commit message.")] = None,
    license: Annotated[
        str, typer.Option(help="The Hub's identifier of the pairs' licence, for the card.")
    ] = "unknown",
) -> None:
    """Share a memory as a data set on the Hub, with a card."""
    from ..retrieval import ImageTextMemory

    opened = ImageTextMemory.load(memory)
    typer.echo(opened.push_to_hub(name, private or None, None, revision, message, license))


def _shown(rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The rows, with their number on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.completed:,} pairs read"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(rows)


def _megabytes(folder: Path) -> float:
    files = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values()) / 1e6
