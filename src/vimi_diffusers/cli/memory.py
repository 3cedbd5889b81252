"""`vimi memory`: build a memory of image-text pairs from a folder, and search one."""

from pathlib import Path
from typing import Annotated

import typer


app = typer.Typer(help="Build and search a memory of image-text pairs.", no_args_is_help=True)


@app.command()
def build(
    folder: Annotated[Path, typer.Argument(help="Folder of images with a metadata.jsonl (file_name, text, ...).")],
    out: Annotated[Path, typer.Argument(help="Folder for the memory; an older memory there is replaced.")],
) -> None:
    """Build a memory from a folder of images."""
    from ..retrieval import ImageTextMemory

    memory = ImageTextMemory.from_folder(folder)
    memory.save(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    dropped = f" ({memory.num_dropped} with an empty text left out)" if memory.num_dropped else ""
    typer.echo(f"{out}: {len(memory)} pairs{dropped}, {size / 1e6:.1f} MB")


@app.command()
def search(
    memory: Annotated[Path, typer.Argument(help="Folder of a saved memory.")],
    prompt: Annotated[str, typer.Argument(help="What to search for.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Number of pairs of each kind.")] = 1,
) -> None:
    """Show the pairs that a prompt retrieves."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..retrieval import ImageTextMemory

    pairs = ImageTextMemory.load(memory).search(prompt, k=k)
    if not pairs:
        typer.echo(f"No pair shares a word with {prompt!r}.")
        return
    table = Table("score", "kind", "id", "text")
    for pair in pairs:
        # Text, not str: what stands in brackets in a caption is no markup
        table.add_row(f"{pair.score:.3f}", pair.kind or "", Text(pair.id), Text(pair.text))
    Console().print(table)
