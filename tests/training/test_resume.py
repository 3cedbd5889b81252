import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from resumable_run import cut_off, free_port, recorded, run, start

from vimi_diffusers.training.checkpoints import list_checkpoints
from vimi_diffusers.training.loop import Trainer
from vimi_diffusers.training.state import STATE_FILE, random_states, set_random_states


ROOT = Path(__file__).parents[2]
MIX = {"text-to-video": 0.35, "subject": 0.4, "prediction": 0.25}


def load(folder):
    """All tensors and numbers of a checkpoint by their path, of every process."""
    found = {}
    for path in sorted(folder.glob("*.pt")):
        found |= flatten(torch.load(path, weights_only=True), path.name)
    return found


def flatten(state, path):
    items = (
        state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else None
    )
    if items is None:
        return {path: state}
    return {name: leaf for key, value in items for name, leaf in flatten(value, f"{path}/{key}").items()}


def assert_same(first, second, names):
    first, second = load(first), load(second)
    assert first.keys() == second.keys()
    for name in names:
        assert sum(name in key for key in first), name
    assert [key for key in first if not same(first[key], second[key])] == []


def same(first, second):
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.fixture
def values(make_config, tmp_path):
    config = make_config(
        task_weights=MIX, max_train_steps=8, lr_scheduler="cosine", dataloader_num_workers=2, checkpointing_steps=4
    )
    return vars(config)


@pytest.fixture
def videos(tmp_path):
    """A folder of 7 images with captions: less than one step's batch over two processes."""
    folder = tmp_path / "videos"
    folder.mkdir()
    lines = []
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        references = [{"image": f"{number}.png", "name": "fox"}]
        lines.append(json.dumps({"video": f"{number}.png", "caption": f"a fox of {number}", "references": references}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


STATE = ("/model/transformer.", "/model/text_encoder.", "/ema/shadow_params", "/optimizer/state", "/lr_scheduler/",
         "process_0.pt/rng/cpu", "/rng/python", "/rng/numpy")  # fmt: skip


@pytest.mark.parametrize(
    "processes, changes",
    [
        (1, {"gradient_accumulation_steps": 2}),
        (2, {}),
        (2, {"train_data_dir": "videos", "task_weights": {"subject": 1.0}, "image_dropout": 0.2}),
    ],
    ids=["accumulated", "two processes", "past the first epoch"],
)
def test_eight_steps_equal_four_and_four_resumed(values, videos, tmp_path, processes, changes):
    if "train_data_dir" in changes:
        changes = {**changes, "train_data_dir": str(videos)}
    values |= changes
    run({**values, "output_dir": str(tmp_path / "straight")}, tmp_path / "straight.txt", processes)
    cut = {**values, "output_dir": str(tmp_path / "cut"), "resume_from_checkpoint": "latest"}
    # where the second checkpoint would get its name
    cut_off(cut, tmp_path / "cut.txt", processes, kill_at=("rename", 2))
    assert [path.name for path in list_checkpoints(tmp_path / "cut")] == ["checkpoint-4"]
    run(cut, tmp_path / "cut.txt", processes)
    names = STATE if processes == 1 else (*STATE, "process_1.pt/rng/cpu")
    for step in (4, 8):
        assert_same(tmp_path / f"straight/checkpoint-{step}", tmp_path / f"cut/checkpoint-{step}", names)
    states = load(tmp_path / "cut/checkpoint-8")
    if processes == 2:
        assert not torch.equal(states["process_0.pt/rng/cpu"], states["process_1.pt/rng/cpu"])
    for rank in range(processes):
        straight = recorded(tmp_path / f"straight.txt.{rank}")
        assert list(straight) == list(range(1, 9)) and straight == recorded(tmp_path / f"cut.txt.{rank}")
        lines = (tmp_path / f"cut.txt.{rank}").read_text().splitlines()
        assert [int(line.split()[0]) for line in lines] == [*range(1, 9), *range(5, 9)]  # four steps were lost


def test_killed_while_it_writes_a_run_goes_on_from_a_good_checkpoint(values, tmp_path):
    values |= {
        "max_train_steps": 4,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 2,
        "dataloader_num_workers": 0,
    }
    run({**values, "output_dir": str(tmp_path / "straight")}, tmp_path / "straight.txt")
    cut = {**values, "output_dir": str(tmp_path / "cut"), "resume_from_checkpoint": "latest"}
    cut_off(cut, tmp_path / "cut.txt", 1, kill_at=("fsync", 7))  # with the second one half on disk
    assert [path.name for path in list_checkpoints(tmp_path / "cut")] == ["checkpoint-1"]
    cut_off(cut, tmp_path / "cut.txt", 1, kill_at=("rename", 4))  # with an old one to be removed
    assert [path.name for path in list_checkpoints(tmp_path / "cut")] == ["checkpoint-2", "checkpoint-3"]
    run(cut, tmp_path / "cut.txt")
    assert_same(tmp_path / "straight/checkpoint-4", tmp_path / "cut/checkpoint-4", STATE)
    assert recorded(tmp_path / "straight.txt.0") == recorded(tmp_path / "cut.txt.0")
    left = {path.name for path in (tmp_path / "cut").iterdir()} - {"logs"}
    assert left == {"checkpoint-3", "checkpoint-4", "pipeline"}


def steps_begun(record):
    path = Path(f"{record}.0")
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_same_weights(values, tmp_path):
    values |= {"max_train_steps": 150, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    run({**values, "output_dir": str(tmp_path / "straight")}, tmp_path / "straight.txt")
    cut = {**values, "output_dir": str(tmp_path / "cut"), "resume_from_checkpoint": "latest"}
    record, moments, reached = tmp_path / "cut.txt", random.Random(0), []
    for _ in range(24):
        begun, wanted = steps_begun(record), moments.randrange(1, 7)
        process = start(cut, record)
        while steps_begun(record) < begun + wanted:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))  # somewhere in one of the next steps or checkpoints
        process.kill()
        process.join()
        assert process.exitcode == -9
        reached += [path.name for path in list_checkpoints(tmp_path / "cut")][-1:]
    assert len(set(reached)) > 10, reached  # it got on
    run(cut, record)
    assert not list((tmp_path / "cut").glob("*.damaged"))
    assert_same(tmp_path / "straight/checkpoint-150", tmp_path / "cut/checkpoint-150", STATE)
    assert recorded(tmp_path / "straight.txt.0") == recorded(tmp_path / "cut.txt.0")


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(make_config, tmp_path):
    settings = {"max_train_steps": 3, "checkpointing_steps": 1}
    straight = Trainer(make_config(**settings))
    straight.run()
    state = tmp_path / "run/checkpoint-3" / STATE_FILE
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=f"checkpoint-3 is damaged: {STATE_FILE} has .* checkpoint-2 is used instead"):
        resumed = Trainer(make_config(**settings, resume_from_checkpoint="latest"))
    assert resumed.global_step == 2
    resumed.run()
    assert all(map(torch.equal, straight.model.parameters(), resumed.model.parameters()))


def test_changed_arguments_are_named_and_refused(make_config, tmp_path):
    config = make_config(max_train_steps=1, checkpointing_steps=1)
    Trainer(config).run()
    model = {**config.model, "transformer": {**config.model["transformer"], "dropout": 0.2}}
    changes = {"learning_rate": 2e-3, "model": model, "train_batch_size": 8, "resume_from_checkpoint": "latest"}
    with pytest.raises(ValueError, match="trained with other arguments") as error:
        Trainer(make_config(max_train_steps=1, **changes))
    message = str(error.value)
    assert "`learning_rate` was 0.001 and is 0.002" in message and "`train_batch_size` was 4 and is 8" in message
    assert "`model.transformer.dropout` was 0.1 and is 0.2" in message and "`seed`" not in message
    with pytest.raises(ValueError, match="`train_batch_size` was 4 and is 8. Set"):
        Trainer(make_config(max_train_steps=1, **changes, allow_changed=["learning_rate", "model"]))
    allowed = ["learning_rate", "model", "train_batch_size"]
    Trainer(make_config(max_train_steps=1, **changes, allow_changed=allowed))


def test_arguments_that_cannot_matter_may_change(make_config, tmp_path):
    Trainer(make_config(max_train_steps=1, checkpointing_steps=1, lr_scheduler="constant")).run()
    free = {
        "output_dir": str(tmp_path / "other"), "resume_from_checkpoint": str(tmp_path / "run/checkpoint-1"),
        "logging_steps": 7, "validation_steps": 3, "validation_samples": 5, "checkpointing_steps": 2,
        "checkpoints_total_limit": 3, "dataloader_num_workers": 1, "max_train_steps": 9,
    }  # fmt: skip
    assert Trainer(make_config(lr_scheduler="constant", **free)).global_step == 1
    with pytest.raises(ValueError, match="`lr_scheduler` was 'constant' and is 'cosine'"):
        Trainer(make_config(lr_scheduler="cosine", **free))


def test_the_length_of_a_run_shapes_its_schedule(make_config):
    Trainer(make_config(max_train_steps=2, checkpointing_steps=1, lr_scheduler="cosine")).run()
    resume = {"resume_from_checkpoint": "latest", "lr_scheduler": "cosine"}
    with pytest.raises(ValueError, match="`max_train_steps` was 2 and is 9"):
        Trainer(make_config(max_train_steps=9, **resume))
    longer = Trainer(make_config(max_train_steps=9, **resume, allow_changed=["max_train_steps"]))
    assert longer.step.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * (1 + np.cos(np.pi / 8)) / 2)


def test_an_allowed_change_takes_effect(make_config):
    """A loaded optimizer brings its old settings along."""
    Trainer(make_config(max_train_steps=2, checkpointing_steps=2, lr_scheduler="constant")).run()
    changes = {"learning_rate": 5e-4, "adam_beta2": 0.95, "adam_weight_decay": 0.1, "ema_decay": 0.5}
    trainer = Trainer(
        make_config(max_train_steps=4, lr_scheduler="constant", resume_from_checkpoint="latest",
                    allow_changed=list(changes), **changes)
    )  # fmt: skip
    decayed, others = trainer.step.optimizer.param_groups
    for _ in range(2):
        assert decayed["lr"] == others["lr"] == 5e-4 and decayed["betas"] == (0.9, 0.95)
        assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
        trainer.step.lr_scheduler.step()
    assert trainer.ema.model.decay == 0.5
    assert all("exp_avg" in state for state in trainer.step.optimizer.state.values())  # and its moments stay


def test_a_run_does_not_start_over_other_checkpoints(make_config):
    Trainer(make_config(checkpointing_steps=2)).run()
    with pytest.raises(FileExistsError, match="already has checkpoint-2"):
        Trainer(make_config())


def test_a_checkpoint_runs_no_code(make_config, tmp_path):
    """Checkpoints are shared: loading one must not unpickle objects."""
    trainer = Trainer(make_config(max_train_steps=1))
    trainer.state.state_dict = lambda: {"harmless": print}
    trainer.state.save()
    with pytest.raises(Exception, match="weights_only|Weights only"):
        Trainer(make_config(max_train_steps=1, resume_from_checkpoint="latest"))


def test_averages_with_profiles_resume_too(make_config, tmp_path):
    settings = {"ema_profiles": [0.05, 0.1], "ema_snapshot_steps": 2, "max_train_steps": 4, "checkpointing_steps": 2}
    straight = Trainer(make_config(**settings))
    straight.run()
    cut = {**settings, "output_dir": str(tmp_path / "cut")}
    resume = str(tmp_path / "run/checkpoint-4")
    with pytest.raises(FileExistsError):  # a later one lies beside it
        Trainer(make_config(**settings, resume_from_checkpoint=str(tmp_path / "run/checkpoint-2")))
    second = Trainer(make_config(**cut, resume_from_checkpoint=str(tmp_path / "run/checkpoint-2")))
    second.run()
    assert resume and second.ema.step == 4
    for first, again in zip(straight.ema.averages.values(), second.ema.averages.values()):
        assert all(map(torch.equal, first, again))
    assert (tmp_path / "cut/ema/step-000000004/snapshot.json").is_file()


def test_random_states_go_through_a_file(tmp_path):
    torch.save(random_states(), tmp_path / "states.pt")
    expected = random.random(), np.random.rand(), torch.rand(3)
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True), seed=0)
    again = random.random(), np.random.rand(), torch.rand(3)
    assert expected[:2] == again[:2] and torch.equal(expected[2], again[2])


@pytest.mark.gpu
def test_a_captured_run_resumes(make_config, tmp_path):
    """Kernels of a GPU need not repeat to the bit, but random numbers and learning rates do."""
    settings = {"cuda_graph": True, "max_train_steps": 12, "checkpointing_steps": 6, "lr_scheduler": "cosine"}
    straight = Trainer(make_config(**settings))
    straight.run()
    cut = {**settings, "output_dir": str(tmp_path / "cut")}
    resumed = Trainer(make_config(resume_from_checkpoint=str(tmp_path / "run/checkpoint-6"), **cut))
    for group in resumed.step.optimizer.param_groups:
        assert group["lr"].device.type == "cuda"  # else the capture would keep the value of that step for ever
    resumed.run()
    first, second = (load(tmp_path / name / "checkpoint-12") for name in ("run", "cut"))
    assert first.keys() == second.keys()
    exact = [key for key in first if "/rng/" in key or "/lr" in key or "step" in key]
    assert any("/rng/cuda" in key for key in exact)
    assert [key for key in exact if not same(first[key], second[key])] == []
    for key, value in first.items():
        if "/model/" in key:
            torch.testing.assert_close(value, second[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
def test_a_launched_script_of_two_processes_resumes(values, tmp_path):
    def launch(name, steps, **changes):
        config = {**values, "lr_scheduler": "constant_with_warmup", **changes, "output_dir": str(tmp_path / name)}
        config = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}",
                   str(ROOT / "training_scripts/train_pretrain.py"), "--config", str(tmp_path / "run.yaml"),
                   "--max_train_steps", str(steps)]  # fmt: skip
        environment = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        result = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, result.stderr[-4000:]

    launch("straight", 8)
    launch("cut", 4)
    launch("cut", 8, resume_from_checkpoint="latest")
    folders = (tmp_path / "straight/checkpoint-8", tmp_path / "cut/checkpoint-8")
    assert_same(*folders, (*STATE, "process_1.pt/rng/cpu"))
    assert (tmp_path / "cut/pipeline/model_index.json").is_file()
