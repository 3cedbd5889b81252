"""Runs of the training loop in processes of their own, which can be killed."""

import hashlib
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing import forkserver

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from vimi_diffusers.training import data
from vimi_diffusers.training.config import TrainingConfig
from vimi_diffusers.training.loop import Trainer


# imports once, so that each process starts in no time
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["resumable_run"])


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(values, record, rank=0, world=1, port=0, kill_at=None, **environment):
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the server gets its own from nowhere else
    forkserver.ensure_running()
    os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)
    process = CONTEXT.Process(target=_train, args=(values, str(record), rank, world, port, kill_at, environment))
    process.start()
    return process


def run(values, record, world=1, **options):
    """Runs to the end in `world` processes; `record` gets what each step trained on."""
    port = free_port()
    processes = [start(values, record, rank, world, port, **options) for rank in range(world)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def cut_off(values, record, world=1, kill_at=None, **environment):
    """A run whose main process kills itself at a call; the others are ended as a launcher does."""
    port = free_port()
    processes = [
        start(values, record, rank, world, port, kill_at if rank == 0 else None, **environment)
        for rank in range(world)
    ]
    processes[0].join(120)
    assert processes[0].exitcode == -signal.SIGKILL
    for process in processes[1:]:
        process.kill()
        process.join(20)


def _train(values, record, rank, world, port, kill_at, environment):
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in a script
    os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", **environment}
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        }  # fmt: skip
    if environment.get("ACCELERATE_USE_FSDP"):
        PartialState(cpu=True)
        # accelerate shards on accelerators alone, though torch can on the CPU: let it take the CPU for one
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if environment.get("ACCELERATE_USE_DEEPSPEED"):  # likewise
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
        os.environ |= {"ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu"}
    data.TOKENIZER_SAMPLES = 200
    if kill_at:
        _kill_at_call(*kill_at)
    trainer = Trainer(TrainingConfig(**values))
    _record_batches(trainer, f"{record}.{rank}")
    trainer.run()


def _kill_at_call(name, count):
    """SIGKILL instead of the `count`th call of a function of `os`."""
    original, calls = getattr(os, name), []

    def killing(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, name, killing)


def _record_batches(trainer, path):
    """One line for each step that ran: its number, and a hash of its batches and tasks."""
    step = trainer.step

    class Recorded:
        def __call__(self, *batches):
            digest = hashlib.sha256()
            for batch in batches:
                for name in sorted(batch):
                    digest.update(batch[name].contiguous().numpy().tobytes())
            with open(path, "a") as file:
                file.write(f"{trainer.global_step + 1} {digest.hexdigest()}\n")
            return step(*batches)

        def __getattr__(self, name):
            return getattr(step, name)

    trainer.step = Recorded()


def recorded(path):
    """The steps of a record in order; a step that was run again must have seen the same."""
    steps = {}
    for line in open(path):
        number, digest = line.split()
        assert steps.setdefault(int(number), digest) == digest
    return dict(sorted(steps.items()))
