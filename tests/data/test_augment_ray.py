"""The same data set from a Ray cluster as from one process, byte for byte, whatever dies on the way."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import psutil
import pytest
from augment_world import NUM_SAMPLES, make_data, make_memory, shard_hashes

from vimi_diffusers.data.augment import AugmentSettings, augment
from vimi_diffusers.retrieval.hygiene import PromptList


ray = pytest.importorskip("ray")

SETTINGS = AugmentSettings(k=3, shard_size=2)
PROMPTS = PromptList(["an evaluation PROMPT of a fox!"])


@pytest.fixture(scope="module", autouse=True)
def ray_settings(tmp_path_factory):
    """No reports to anyone, and Ray's token in a home of its own; `ray` reads these when it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return make_data(folder / "clips"), make_memory(folder / "memory")


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    augment(*world, out, SETTINGS, prompts=PROMPTS)
    return out


@contextmanager
def killing(root: int, part: Path, names: list[str]):
    """
    While the block runs, SIGKILL one worker of each stage below the process `root` while it is at work; of the writing
    stage once a shard is finished.
    """
    killed: dict[str, int] = {}
    over = []

    def kill():
        while not over and len(killed) < len(names):
            waiting = [name for name in names if name not in killed]
            if not list((part / "done").glob("*.json")):
                waiting = [name for name in waiting if name != "WriteShard"]
            for process in psutil.Process(root).children(recursive=True):
                for name in waiting:
                    if name not in killed and f"({name})).submit" in " ".join(_command(process)):
                        os.kill(process.pid, signal.SIGKILL)
                        killed[name] = process.pid
            time.sleep(0.02)

    thread = Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.append(True)
        thread.join()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # gone meanwhile
        return []


def check(out: Path, whole: Path) -> None:
    assert shard_hashes(out) == shard_hashes(whole) and len(shard_hashes(out)) == NUM_SAMPLES // 2
    assert json.loads((out / "manifest.json").read_text()) == json.loads((whole / "manifest.json").read_text())
    assert not out.with_name("out.part").exists()


@pytest.mark.slow
def test_ray_writes_what_one_process_writes(world, whole, tmp_path, tmp_path_factory):
    """On a small instance of Ray that this process holds, and keeps."""
    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=10**8,
        _temp_dir=str(tmp_path_factory.mktemp("r")),
    )  # fmt: skip
    try:
        augment(*world, tmp_path / "out", SETTINGS, prompts=PROMPTS, ray_address="auto")
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    check(tmp_path / "out", whole)


@contextmanager
def cluster(folder: Path, num_cpus: int):
    """A cluster of one machine from `ray start --head`: its address, and the id of the process to which all belong."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
        f"--num-cpus={num_cpus}", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}",
        "--object-store-memory=100000000", "--node-ip-address=127.0.0.1",
    ]  # fmt: skip
    with open(folder / "start.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while "Ray runtime started" not in (folder / "start.log").read_text():
            assert process.poll() is None, (folder / "start.log").read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in members:  # by their ids: `ray stop` would stop every cluster of this user
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(30)
        psutil.wait_procs(members, timeout=30)


@pytest.mark.slow
def test_a_started_cluster(world, whole, tmp_path, tmp_path_factory):
    """`ray start --head`, and a worker of each kind of stage is killed while it works."""
    with cluster(tmp_path_factory.mktemp("r"), num_cpus=4) as (address, root):
        with killing(root, tmp_path / "out.part", ["ReadCaptions", "SearchIndex", "WriteShard"]) as killed:
            augment(*world, tmp_path / "out", SETTINGS, prompts=PROMPTS, ray_address=address)
        assert len(killed) == 3
    check(tmp_path / "out", whole)


def test_no_cluster(world, tmp_path):
    with pytest.raises(ConnectionError, match="no Ray cluster at '127.0.0.1:1'"):
        augment(*world, tmp_path / "out", SETTINGS, ray_address="127.0.0.1:1")
