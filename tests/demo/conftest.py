import pytest
from drawn_memory import draw_memory
from PIL import Image


@pytest.fixture(scope="session")
def memory(tmp_path_factory):
    return draw_memory(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def pipeline(tiny_checkpoint):
    from vimi_diffusers import VIMIPipeline

    return VIMIPipeline.from_pretrained(tiny_checkpoint)


@pytest.fixture
def pictures(tmp_path):
    """Paths of two uploaded pictures."""
    paths = []
    for colour in ("red", "blue"):
        path = tmp_path / f"{colour}.png"
        Image.new("RGB", (40, 30), colour).save(path)
        paths.append(str(path))
    return paths
