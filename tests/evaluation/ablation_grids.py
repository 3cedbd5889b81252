"""Grids of tiny models for the tests of ablations."""

from copy import deepcopy
from pathlib import Path

import yaml


SMOKE = Path(__file__).parents[2] / "training_scripts/configs/ablations/smoke.yaml"


def smoke_content(world):
    content = yaml.safe_load(SMOKE.read_text())
    content["base"]["training"]["train_data_dir"] = str(world)
    return content


def write_grid(folder, world, axes=None, base=None, **changes):
    """The smoke grid with other axes and changed sections of its base, as a file."""
    content = {**smoke_content(world), **changes}
    if axes is not None:
        content["axes"] = deepcopy(axes)
    for section, values in (base or {}).items():
        content["base"][section] = {**content["base"][section], **values}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
