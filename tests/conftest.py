import importlib.util
from pathlib import Path

import pytest


@pytest.fixture
def tiny_pipeline():
    """A fresh pipeline of random weights: 4 frames of 16x16 pixels, without a progress bar."""
    from vimi_diffusers import VIMIPipeline
    from vimi_diffusers.vimi.tiny import build_tiny_components

    pipe = VIMIPipeline(**build_tiny_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same pipeline, saved."""
    from vimi_diffusers import VIMIPipeline
    from vimi_diffusers.vimi.tiny import build_tiny_components

    folder = tmp_path_factory.mktemp("checkpoint")
    VIMIPipeline(**build_tiny_components()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small world that the tests of emoji world draw: two held-out concepts."""
    path = Path(__file__).parent / "emoji_world/conftest.py"
    spec = importlib.util.spec_from_file_location("emoji_world_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("world")
    module.build_tiny_world(root)
    return root
