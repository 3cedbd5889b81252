from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from vimi_diffusers.data import PromptSettings, VideoData, VideoDataSettings, open_source
from vimi_diffusers.data.index import examine_all


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state for a process: a test's device must not bind the next."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def components():
    from vimi_diffusers.vimi.tiny import build_tiny_components

    return build_tiny_components()


@pytest.fixture
def make_data(components):
    """Bound data of a folder, as one of several processes may see it."""

    def make(path, rank=0, world_size=1, bind=True, prompts=None, **settings):
        accelerator = SimpleNamespace(
            process_index=rank, num_processes=world_size, is_main_process=rank == 0, device=torch.device("cpu")
        )
        prompts = PromptSettings(**(prompts or {"task_weights": {"text-to-video": 1.0}}))
        options = {"buckets": ["4x16x16@4"], "batch_size": 2, "max_sequence_length": 64, **settings}
        source = open_source(path)
        infos = examine_all(source, range(len(source))) if world_size > 1 else None  # what the others would send
        data = VideoData(source, accelerator, VideoDataSettings(prompts=prompts, **options), infos)
        if bind:
            data.bind(components["text_processor"], components["transformer"])
        return data

    return make
