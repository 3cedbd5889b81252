# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The `vimi` command. The modules of its commands import what is heavy inside their functions, so help stays fast."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from . import data, emoji_world, evaluate, memory
from .ablate import ablate
from .augment import augment
from .demo import demo
from .ema import ema
from .export import export
from .generate import generate
from .instruct_data import instruct_data


app = typer.Typer(
    name="vimi",
    help="Short videos from prompts of text and images, grounded in those images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate)
app.command()(demo)
app.command()(export)
app.command()(ema)
app.command()(instruct_data)
app.command()(augment)
app.command()(ablate)
app.add_typer(memory.app, name="memory")
app.add_typer(data.app, name="data")
app.add_typer(emoji_world.app, name="emoji-world")
app.add_typer(evaluate.app, name="evaluate")

# click's class, or typer's own copy of it in later releases
_UsageError = typer.BadParameter.__base__


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"vimi_diffusers {__version__}")
        raise typer.Exit()


@app.callback()
def _vimi(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(args: Sequence[str] | None = None) -> None:
    """
    Run the `vimi` command and exit: 0 when all went well, 1 for input that cannot be used, 2 for a wrong option.
    Errors are one line on stderr.

    Args:
        args (`list[str]`, *optional*):
            Command-line arguments. Defaults to those of the process.
    """
    try:
        sys.exit(app(args, standalone_mode=False))
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without its command; its message is the help
            typer.echo(error.format_message(), err=True)
            sys.exit(2)
        _fail(error.format_message(), 2)
    except (ValueError, OSError, ImportError) as error:
        _fail(str(error) or type(error).__name__, 1)
    except typer.Abort:
        _fail("Aborted.", 1)


def _fail(message: str, code: int) -> None:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)
