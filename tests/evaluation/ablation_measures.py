"""Measures of the package's ablations that tests name as `ablation_measures:function`."""

import os
import signal
from pathlib import Path


def steps(trained):
    return {"steps": trained.config.max_train_steps, "seed": trained.config.seed}


def killed(trained):
    os.kill(os.getpid(), signal.SIGKILL)


def broken(trained):
    raise RuntimeError("this measure always fails")


def works_later(trained):
    """Fails until there is a file `mended` in the cells' folder."""
    if not (Path(trained.pipeline).parents[2] / "mended").exists():
        raise RuntimeError("not yet")
    return {"value": 1.0}
