# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Runs the cells of a grid, each in a process of its own, and gives out the devices."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from .cell import LOG, results_path, run_cell
from .grid import Cell, Grid


CELLS = "cells"


@dataclass(frozen=True)
class CellStatus:
    """
    What became of a cell.

    Args:
        cell ([`Cell`]): The cell.
        folder (`Path`): Its files; cells of equal settings share one.
        results (`dict`, *optional*): Its figures, steps and times; `None` if it failed.
        error (`str`, *optional*): Why it failed.
    """

    cell: Cell
    folder: Path
    results: dict[str, Any] | None = None
    error: str = ""


def run_grid(
    grid: Grid,
    out: str | Path,
    devices: Sequence[str] = ("cpu",),
    report: Callable[[int, int, str], None] = lambda *_: None,
) -> list[CellStatus]:
    """
    Trains and measures all cells of a grid. Each has its folder under `out/cells`, named by the hash of its settings:
    what is finished there is kept, what is half done goes on from its last checkpoint. A cell that fails, or whose
    process dies, is named; the others go on.

    Args:
        grid ([`Grid`]): The cells.
        out (`str` or `Path`): The folder.
        devices (`Sequence[str]`, *optional*, defaults to `("cpu",)`):
            Where cells run, one on each at a time: `"cpu"` (also several times) and GPUs such as `"cuda:0"`.
        report (`Callable`, *optional*): Called as `report(done, total, message)`.

    Returns:
        `list[CellStatus]`: Of all cells, in the grid's order.
    """
    check_devices(devices)
    out = Path(out)
    folders = {cell.training_digest: out / CELLS / cell.training_digest for cell in grid.cells}
    unique = {(cell.training_digest, cell.evaluation_digest): cell for cell in grid.cells}
    waiting = [cell for cell in unique.values() if _results(folders[cell.training_digest], cell) is None]
    done, total = len(unique) - len(waiting), len(unique)
    report(done, total, f"{done} finished before")
    errors: dict[tuple[str, str], str] = {}
    context = _context()
    free, running = list(devices), {}
    try:
        while waiting or running:
            while free and (cell := _next(waiting, running)):
                waiting.remove(cell)
                device = free.pop(0)
                folder = folders[cell.training_digest]
                threads = max((os.cpu_count() or 1) // len(devices), 1) if device == "cpu" else None
                process = context.Process(target=run_cell, args=(cell, folder, device, threads))
                process.start()
                running[process.sentinel] = (process, cell, device, time.perf_counter())
            for sentinel in wait(list(running)):
                process, cell, device, started = running.pop(sentinel)
                process.join()
                free.append(device)
                done += 1
                name = f"{grid.name(cell.assignment)} seed {cell.seed}"
                if _results(folders[cell.training_digest], cell) is None:
                    error = _why(process.exitcode, folders[cell.training_digest])
                    errors[cell.training_digest, cell.evaluation_digest] = error
                    report(done, total, f"{name} failed: {error}")
                else:
                    report(done, total, f"{name}: {time.perf_counter() - started:.0f} s on {device}")
    finally:
        for process, *_ in running.values():  # of a run that is stopped
            process.terminate()
            process.join()
    statuses = []
    for cell in grid.cells:
        folder = folders[cell.training_digest]
        error = errors.get((cell.training_digest, cell.evaluation_digest), "")
        statuses.append(CellStatus(cell, folder, _results(folder, cell), error))
    return statuses


def check_devices(devices: Sequence[str]) -> None:
    """
    Raises:
        ValueError: If a device is unknown or not there.
    """
    if not devices:
        raise ValueError("Give at least one device, such as cpu or cuda:0.")
    for device in devices:
        kind, _, number = device.partition(":")
        if device != "cpu" and (kind != "cuda" or not (number or "0").isdigit()):
            raise ValueError(f"Unknown device {device!r}: give cpu, or GPUs as cuda:0.")
        if kind == "cuda":
            import torch

            if int(number or 0) >= torch.cuda.device_count():
                raise ValueError(f"There is no device {device!r}: {torch.cuda.device_count()} GPUs are visible.")


def _next(waiting: list[Cell], running: dict[int, Any]) -> Cell | None:
    """The next cell whose folder no other process works in."""
    busy = {entry[1].training_digest for entry in running.values()}
    return next((cell for cell in waiting if cell.training_digest not in busy), None)


def _context() -> Any:
    """Processes that start in no time, where the system can: their server imports once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.world", f"{__package__}.measures", f"{__package__}.cell"])
    return context


def _results(folder: Path, cell: Cell) -> dict[str, Any] | None:
    path = results_path(folder, cell)
    if not path.is_file():
        return None
    with suppress(ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    raise ValueError(f"{path} is damaged: remove it, and the cell is measured again.")


def _why(exitcode: int | None, folder: Path) -> str:
    """What a failed process said last, and where the rest is."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    lines = [line.strip() for line in lines if line.strip()]
    if exitcode is not None and exitcode < 0:
        return f"killed by signal {-exitcode}; see {log}"
    return f"{lines[-1] if lines else f'exit code {exitcode}'}; see {log}"
