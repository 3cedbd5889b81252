import importlib.util
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(scope="session")
def tiny_models():
    """The module that builds tiny models."""
    path = Path(__file__).parent / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("instruct_tiny_models", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def clips(world, tmp_path_factory):
    """Captioned clips of the small emoji world, with the truth about them."""
    from vimi_diffusers.evaluation.segmentation import render_clips

    return render_clips(world, tmp_path_factory.mktemp("clips") / "set", 12, size=32)


@pytest.fixture(scope="session")
def oracles(clips):
    """Plug-ins by name that know the truth."""
    from vimi_diffusers.data.instruct import PluginSettings

    name = f"vimi_diffusers.evaluation.segmentation:Oracle{{}}={clips}"
    return PluginSettings(*(name.format(kind) for kind in ("Extractor", "Detector", "Segmenter")), batch_size=4)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state for a process: a test's device must not bind the next."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
