# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi demo`: the three tasks in a browser."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Optional

import typer


def demo(
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Folder of a pipeline, or its name on the Hub (user/repo).", show_default="embedded weights"
        ),
    ] = None,
    memory: Annotated[
        Optional[Path], typer.Option(help="Folder of a saved memory.", show_default="embedded memory")
    ] = None,
    device: Annotated[
        Optional[str], typer.Option(help="Where to run, such as cuda or cpu.", show_default="cuda if there is one")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.", min=0, max=65535)] = 7860,
    share: Annotated[bool, typer.Option(help="Also open a public link through Gradio.")] = False,
) -> None:
    """Open the demo: text to video, subjects and prediction on one page."""
    if find_spec("gradio") is None:
        raise ImportError("The demo needs gradio: pip install 'vimi_diffusers[demo]'.")
    _check_address(host, port)
    from ..demo import launch, load_demo

    launch(load_demo(model, memory, device), server_name=host, server_port=port or None, share=share)


def _check_address(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ValueError(f"Cannot listen on {host}, port {port} ({error.strerror}): choose another.") from error
