import json
import os
import shutil

import pytest

from vimi_diffusers.training import checkpoints
from vimi_diffusers.training.checkpoints import (
    RECORD,
    begin_checkpoint,
    find_checkpoint,
    finish_checkpoint,
    list_checkpoints,
    read_record,
    refuse_checkpoints,
    show_folder,
)


def write(folder, step, total_limit=None):
    partial = begin_checkpoint(folder, step)
    (partial / "state.bin").write_bytes(b"weights %d" % step)
    (partial / "part").mkdir()
    (partial / "part/shard.bin").write_bytes(bytes(100))
    return finish_checkpoint(partial, {"step": step}, total_limit)


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


def test_the_latest_is_the_one_with_the_highest_step(tmp_path):
    for step in (50, 900, 1000):
        write(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-50", "checkpoint-900", "checkpoint-1000"]
    path, record = find_checkpoint(tmp_path, "latest")
    assert path.name == "checkpoint-1000" and record["step"] == 1000
    assert record["files"].keys() == {"state.bin", "part/shard.bin"} and record["files"]["state.bin"]["size"] == 12
    assert find_checkpoint(tmp_path / "other", str(tmp_path / "checkpoint-900"))[1]["step"] == 900


def test_old_ones_are_removed_after_the_new_one_is_there(tmp_path):
    for step in (1, 2, 3, 10):
        write(tmp_path, step, total_limit=2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-10"]
    write(tmp_path, 11)
    assert len(names(tmp_path)) == 3 and len(os.listdir(tmp_path)) == 3  # nothing hidden either


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_checkpoint_cut_off_while_it_is_written_is_none(tmp_path, monkeypatch, call):
    write(tmp_path, 1)

    def full_disk(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, call, full_disk)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, 2, total_limit=1)
    assert sorted(os.listdir(tmp_path)) == [".checkpoint-2.partial", "checkpoint-1"] and names(tmp_path) == [
        "checkpoint-1"
    ]
    assert find_checkpoint(tmp_path, "latest")[1]["step"] == 1
    write(tmp_path, 3)  # the next run clears up
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1", "checkpoint-3"]


def test_an_old_one_cut_off_while_it_is_removed_is_none(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda path, **kwargs: None)
    write(tmp_path, 2, total_limit=1)
    monkeypatch.undo()
    assert names(tmp_path) == ["checkpoint-2"] and (tmp_path / ".checkpoint-1.removed").is_dir()
    write(tmp_path, 3)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-3"]


def test_everything_is_on_disk_before_a_checkpoint_gets_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(checkpoints, "_flush", lambda path: flushed.append(path))
    rename = os.rename
    monkeypatch.setattr(checkpoints.os, "rename", lambda old, new: (flushed.append("named"), rename(old, new)))
    write(tmp_path, 4)
    partial = tmp_path / ".checkpoint-4.partial"
    before = flushed[: flushed.index("named")]
    expected = {partial, partial / "part", partial / "part/shard.bin", partial / "state.bin", partial / RECORD}
    assert set(before) == expected and flushed[-1] == tmp_path


def truncate(folder):
    (folder / "state.bin").write_bytes(b"weig")
    return r"state.bin has 4 bytes instead of 9"


def flip(folder):
    content = bytearray((folder / "part/shard.bin").read_bytes())
    content[50] ^= 1
    (folder / "part/shard.bin").write_bytes(content)
    return "the content of part/shard.bin is not what was written"


def lose(folder):
    (folder / "state.bin").unlink()
    return "state.bin is missing"


def cut_record(folder):
    text = (folder / RECORD).read_text()
    (folder / RECORD).write_text(text[: len(text) // 2])
    return f"{RECORD} cannot be read"


def strange_record(folder):
    (folder / RECORD).write_text(json.dumps({"step": 2, "files": ["state.bin"]}))
    return f"{RECORD} cannot be read"


@pytest.mark.parametrize("damage", [truncate, flip, lose, cut_record, strange_record])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    for step in (1, 2):
        write(tmp_path, step)
    message = damage(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=f"checkpoint-2 is damaged: {message}"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-2"))
    with pytest.warns(UserWarning, match=f"checkpoint-2 is damaged: {message}.* checkpoint-1 is used instead"):
        path, record = find_checkpoint(tmp_path, "latest")
    assert path.name == "checkpoint-1" and record["step"] == 1
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1", "checkpoint-2.damaged"]
    write(tmp_path, 2, total_limit=1)  # the limit counts good ones
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-2.damaged"]


def test_a_folder_without_a_record_is_passed_over(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.warns(UserWarning, match=f"it has no {RECORD}"):
        assert find_checkpoint(tmp_path, "latest")[1]["step"] == 1


def test_without_any_whole_checkpoint_a_run_does_not_start_over(tmp_path):
    write(tmp_path, 1)
    truncate(tmp_path / "checkpoint-1")
    for _ in range(2):  # also not at the second try
        with pytest.raises(ValueError, match="No checkpoint of .* is whole.*state.bin has 4 bytes"):
            find_checkpoint(tmp_path, "latest")


def test_other_folders_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-best", "checkpoint-3.old", "my-checkpoint-7", "pipeline"):
        (tmp_path / name).mkdir()
    assert names(tmp_path) == [] and find_checkpoint(tmp_path, "latest") is None
    assert find_checkpoint(tmp_path / "nowhere", "latest") is None
    with pytest.raises(FileNotFoundError, match=f"No checkpoint in .*pipeline: it has no {RECORD}"):
        find_checkpoint(tmp_path, str(tmp_path / "pipeline"))


def test_runs_are_not_mixed(tmp_path):
    """An older run's later checkpoints would be `"latest"`, and a limit would remove the new ones."""
    refuse_checkpoints(tmp_path)
    for step in (1, 2, 3):
        write(tmp_path, step)
    with pytest.raises(FileExistsError, match="already has checkpoint-3 .*`resume_from_checkpoint: latest`"):
        refuse_checkpoints(tmp_path)
    with pytest.raises(FileExistsError, match="already has checkpoint-3"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-2"))
    shutil.rmtree(tmp_path / "checkpoint-3")
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-2"))[1] == read_record(tmp_path / "checkpoint-2")


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("old", "new"):
        (tmp_path / ".partial").mkdir()
        (tmp_path / ".partial/file").write_text(content)
        show_folder(tmp_path / ".partial", tmp_path / "pipeline")
    assert (tmp_path / "pipeline/file").read_text() == "new" and os.listdir(tmp_path) == ["pipeline"]
