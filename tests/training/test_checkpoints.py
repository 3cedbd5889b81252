import os

import pytest
import torch

from vimi_diffusers.training.checkpoints import STATE_FILE, list_checkpoints, load_checkpoint, save_checkpoint


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


def test_the_latest_is_the_one_with_the_highest_step(tmp_path):
    for step in (900, 1000, 50):
        save_checkpoint(tmp_path, step, {"global_step": step})
    assert names(tmp_path) == ["checkpoint-50", "checkpoint-900", "checkpoint-1000"]
    assert load_checkpoint(tmp_path, "latest") == {"global_step": 1000}
    assert load_checkpoint(tmp_path, str(tmp_path / "checkpoint-900")) == {"global_step": 900}


def test_old_ones_are_removed_after_the_new_one_is_there(tmp_path):
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, step, {"global_step": step}, total_limit=2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-10"]
    save_checkpoint(tmp_path, 11, {})
    assert len(names(tmp_path)) == 3


def test_a_checkpoint_is_replaced_whole(tmp_path):
    save_checkpoint(tmp_path, 5, {"value": torch.ones(2)})
    save_checkpoint(tmp_path, 5, {"value": torch.zeros(2)})
    assert torch.equal(load_checkpoint(tmp_path, "latest")["value"], torch.zeros(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5"]


def test_a_half_written_checkpoint_is_ignored(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"global_step": 1})

    def full_disk(state, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, 2, {"global_step": 2}, total_limit=1)
    assert len(os.listdir(tmp_path)) == 2 and names(tmp_path) == ["checkpoint-1"]  # the rest lies there, hidden
    assert load_checkpoint(tmp_path, "latest") == {"global_step": 1}
    save_checkpoint(tmp_path, 2, {"global_step": 2})  # the next run overwrites the rest
    assert load_checkpoint(tmp_path, "latest") == {"global_step": 2}
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1", "checkpoint-2"]


def test_other_folders_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-best", "checkpoint-3.old", "my-checkpoint-7", "pipeline"):
        (tmp_path / name).mkdir()
    assert names(tmp_path) == [] and load_checkpoint(tmp_path, "latest") is None
    assert load_checkpoint(tmp_path / "nowhere", "latest") is None
    with pytest.raises(FileNotFoundError, match=f"No checkpoint in .*pipeline: it has no {STATE_FILE}"):
        load_checkpoint(tmp_path, str(tmp_path / "pipeline"))


def test_a_checkpoint_runs_no_code(tmp_path):
    """Checkpoints are shared: loading one must not unpickle objects."""
    save_checkpoint(tmp_path, 1, {"harmless": print})
    with pytest.raises(Exception, match="weights_only|Weights only"):
        load_checkpoint(tmp_path, "latest")
