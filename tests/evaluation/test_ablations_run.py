import json
import os

import pytest
from ablation_grids import write_grid
from accelerate.state import AcceleratorState

from vimi_diffusers.evaluation.ablations import Grid, run_grid, summarise_grid
from vimi_diffusers.evaluation.ablations.cell import RUN
from vimi_diffusers.evaluation.ablations.plots import write_plots
from vimi_diffusers.evaluation.ablations.table import markdown, write_table
from vimi_diffusers.evaluation.ablations.world import AblationTrainer


def measured_by(*names):
    return {"evaluation": {"measures": [f"ablation_measures:{name}" for name in names]}}


def test_failing_cells_are_named_and_the_others_finish(world, tmp_path):
    values = {"good": {}, "broken": measured_by("broken"), "killed": measured_by("killed")}
    grid = Grid.load(write_grid(tmp_path, world, {"measure": {"values": values}}, measured_by("steps"), seeds=[3]))
    statuses = run_grid(grid, tmp_path / "out")
    good, broken, killed = statuses
    assert good.results["figures"] == {"steps": 8, "seed": 3} and good.results["steps"] == 8
    assert broken.results is None and "RuntimeError: this measure always fails" in broken.error
    assert killed.results is None and "killed by signal 9" in killed.error
    assert good.folder == broken.folder == killed.folder  # one training, three evaluations
    text = markdown(grid, statuses, summarise_grid(grid, statuses))
    assert "2 of 3 cells failed" in text and "- measure=broken, seed 3: RuntimeError" in text
    assert str(broken.folder / "log.txt") in text


def test_what_is_finished_is_kept_and_the_rest_tried_again(world, tmp_path):
    axes = {"measure": {"values": {"good": {}, "late": measured_by("works_later")}}}
    grid = Grid.load(write_grid(tmp_path, world, axes, measured_by("steps"), seeds=[0]))
    out, messages = tmp_path / "out", []
    first = run_grid(grid, out, report=lambda *message: messages.append(message))
    assert first[0].results and not first[1].results and messages[0][:2] == (0, 2)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".json")}
    (first[0].folder.parent / "mended").touch()
    (first[0].folder / "mended").touch()
    messages.clear()
    second = run_grid(grid, out, report=lambda *message: messages.append(message))
    assert messages[0][:2] == (1, 2) and second[1].results["figures"] == {"value": 1.0}
    assert second[0].results == first[0].results
    kept = {path for path in files if path.name != "settings.json"}
    assert all(path.stat().st_mtime_ns == files[path] for path in kept)  # nothing was trained or measured again


class CutOff(Exception):
    pass


def test_a_half_trained_cell_goes_on_from_its_checkpoint(world, tmp_path):
    base = {"evaluation": {"measures": ["held_out_loss"]}}
    grid = Grid.load(write_grid(tmp_path, world, {"a": {"values": {"x": {}, "y": {}}}}, base, seeds=[0]))
    cell = grid.cells[0]
    whole = run_grid(grid, tmp_path / "whole")[0]

    folder = tmp_path / "cut" / "cells" / cell.training_digest
    trainer = AblationTrainer(cell.config(folder / RUN), cell.options)
    save = trainer.state.save

    def save_and_stop():
        save()
        raise CutOff

    trainer.state.save = save_and_stop
    with pytest.raises(CutOff):
        trainer.run()
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = run_grid(grid, tmp_path / "cut")[0]
    assert whole.results["resumed_at_step"] == 0 and resumed.results["resumed_at_step"] == 4
    assert resumed.results["figures"] == pytest.approx(whole.results["figures"], rel=1e-6)
    assert whole.results["train_seconds"] and resumed.results["train_seconds"] is None
    assert not list((folder / RUN).glob("checkpoint-*"))  # of a finished cell the pipeline stays


def test_devices_are_checked_before_anything_runs(world, tmp_path):
    grid = Grid.load(write_grid(tmp_path, world))
    bad = {"tpu:0": "Unknown device 'tpu:0'", "cuda:97": "no device 'cuda:97'", "": "Unknown device ''"}
    for device, message in bad.items():
        with pytest.raises(ValueError, match=message):
            run_grid(grid, tmp_path / "out", [device])
    with pytest.raises(ValueError, match="at least one"):
        run_grid(grid, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_the_smoke_grid(world, tmp_path):
    """Two axes, two values, two seeds; two cells at a time."""
    grid = Grid.load(write_grid(tmp_path, world))
    out = tmp_path / "out"
    statuses = run_grid(grid, out, ["cpu"] * min(os.cpu_count(), 2))
    assert len(statuses) == 6 and not [status.error for status in statuses if status.error]
    rows = summarise_grid(grid, statuses)
    assert {row.variant for row in rows} == {"base", "retrieval=off", "conditioner=frozen"}
    losses = [row for row in rows if row.measure == "loss/text-to-video"]
    assert [row.summary.count for row in losses] == [2, 2, 2]
    assert losses[1].difference.mean != 0 != losses[2].difference.mean
    parameters = {row.variant: row.parameters for row in rows}
    assert len(set(parameters.values())) == 1
    write_table(grid, statuses, rows, out)
    assert len(write_plots(grid, rows, out)) == 4
    content = json.loads((out / "table.json").read_text())
    assert len(content["cells"]) == 6 and all("results" in cell for cell in content["cells"])
