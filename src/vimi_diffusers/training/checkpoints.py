# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a run, written whole or not at all."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch


STATE_FILE = "training_state.pt"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints under `output_dir`, oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(output_dir: str | Path, step: int, state: dict[str, Any], total_limit: int | None = None) -> Path:
    """
    Writes `output_dir/checkpoint-{step}` under another name first, then renames it; removes the oldest ones over
    `total_limit` afterwards.
    """
    final = Path(output_dir) / f"checkpoint-{step}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.save(state, partial / STATE_FILE)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    if total_limit:
        for old in list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)
    return final


def load_checkpoint(output_dir: str | Path, resume_from: str) -> dict[str, Any] | None:
    """
    Loads the state that [`save_checkpoint`] wrote, on the CPU.

    Args:
        output_dir (`str` or `Path`): Where `"latest"` looks.
        resume_from (`str`): A checkpoint folder, or `"latest"`.

    Returns:
        The state; `None` if there is no checkpoint yet and `resume_from` is `"latest"`.

    Raises:
        FileNotFoundError: If the named folder holds no checkpoint.
    """
    if resume_from == "latest":
        checkpoints = list_checkpoints(output_dir)
        if not checkpoints:
            return None
        path = checkpoints[-1]
    else:
        path = Path(resume_from)
    if not (path / STATE_FILE).is_file():
        raise FileNotFoundError(f"No checkpoint in {path}: it has no {STATE_FILE}.")
    return torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
