import pytest

from vimi_diffusers.emoji_world.world_index import WorldIndex


@pytest.fixture(scope="session")
def index(world):
    return WorldIndex.load(world)
