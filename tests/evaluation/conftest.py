import importlib.util
from pathlib import Path

import pytest

from vimi_diffusers.emoji_world.world_index import WorldIndex


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder of the small world that the tests of emoji world draw: two held-out concepts."""
    path = Path(__file__).parents[1] / "emoji_world/conftest.py"
    spec = importlib.util.spec_from_file_location("emoji_world_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path_factory.mktemp("world")
    module.build_tiny_world(root)
    return root


@pytest.fixture(scope="session")
def index(world):
    return WorldIndex.load(world)
