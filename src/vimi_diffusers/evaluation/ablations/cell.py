# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One cell of a grid in a process of its own: trains, or goes on, and measures."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from ...files import replacing
from .grid import Cell


RUN, PIPELINE, TRAINED, LOG, SETTINGS = "run", "pipeline", "trained.json", "log.txt", "settings.json"


def results_path(folder: Path, cell: Cell) -> Path:
    """Where a cell's figures are: they are whole if the file is there."""
    return folder / f"results-{cell.evaluation_digest}.json"


def run_cell(cell: Cell, folder: Path, device: str, threads: int | None = None) -> None:
    """
    Trains and measures a cell; what is done already is kept. For a process of its own, whose output goes to
    `folder/log.txt`.

    Args:
        cell ([`Cell`]): The cell.
        folder (`Path`): For its files.
        device (`str`): `"cpu"`, or a GPU such as `"cuda:1"`, which is then all that the process sees.
        threads (`int`, *optional*): CPU threads of torch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _redirect(folder / LOG)
    _give_device(device)
    import torch

    if threads:
        torch.set_num_threads(threads)
    _write(folder / SETTINGS, cell.settings())
    record = _train(cell, folder)
    _measure(cell, folder, device, record)


def _redirect(log: Path) -> None:
    """All output of this process, also that of libraries and of a crash, goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _give_device(device: str) -> None:
    """Before CUDA starts: which GPU there is, or none."""
    kind, _, number = device.partition(":")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)  # a cell is a run of one process
    if kind == "cpu":
        os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        return
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(number or 0)] if visible else number or "0"


def _train(cell: Cell, folder: Path) -> dict[str, Any]:
    """Trains to the end, from the last checkpoint if there is one; what the table says of it."""
    if (folder / TRAINED).is_file():
        return json.loads((folder / TRAINED).read_text(encoding="utf-8"))
    from .world import AblationTrainer

    run = folder / RUN
    config = cell.config(run)
    config.resume_from_checkpoint = "latest"
    if not list(run.glob("checkpoint-*")):
        shutil.rmtree(run, ignore_errors=True)  # nothing of it can be used
    started = time.perf_counter()
    trainer = AblationTrainer(config, cell.options)
    first = trainer.global_step
    pipeline = trainer.run()
    record = {
        "steps": config.max_train_steps,
        "resumed_at_step": first,
        # of a run that went on, the part before is not known
        "train_seconds": round(time.perf_counter() - started, 3) if not first else None,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "pipeline": str(pipeline.relative_to(folder)),
    }
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    _write(folder / TRAINED, record)
    return record


def _measure(cell: Cell, folder: Path, device: str, record: dict[str, Any]) -> None:
    import torch

    from .measures import Trained
    from .options import load_measure

    started = time.perf_counter()
    where = "cuda" if device.startswith("cuda") else "cpu"
    trained = Trained(cell.config(folder / RUN), cell.options, cell.measured, folder / record["pipeline"], where)
    figures: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        for name in cell.measured.measures:
            found = load_measure(name)(trained)
            if twice := sorted(set(found) & set(figures)):
                raise ValueError(f"Measure {name!r} gives {twice[0]!r}, which another measure gave.")
            figures |= {key: float(value) for key, value in found.items()}
    results = {
        "figures": figures,
        **{name: record[name] for name in ("steps", "train_seconds", "resumed_at_step", "parameters")},
        "evaluation_seconds": round(time.perf_counter() - started, 3),
        "device": where,
    }
    _write(results_path(folder, cell), results)


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
