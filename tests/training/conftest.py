import pytest
from accelerate.state import AcceleratorState

from vimi_diffusers.training import data
from vimi_diffusers.training.config import TrainingConfig


MODEL = {
    "vocab_size": 400,
    "image_size": 16,
    "image_patch_size": 8,
    "conditioner": {"vision_dim": 16, "vision_layers": 1, "text_dim": 32, "text_layers": 1, "head_dim": 16},
    "transformer": {
        "num_frames": 4, "height": 16, "width": 16, "patch_size": [1, 4, 4], "group_size": [4, 4], "patch_dim": 24,
        "latent_dim": 32, "num_latents": 8, "condition_dim": 16, "num_layers": 1, "num_latent_layers": 1,
        "cross_attention_heads": 2, "latent_heads": 2, "patch_attention": True, "input_skip": True, "dropout": 0.1,
    },
    "scheduler": {"sigma_in": 2.0, "sigma_max": 40.0, "sigma_min": 0.005},
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one state for a process: a test's precision must not bind the next."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def make_config(world, tmp_path, monkeypatch):
    """A run of a few steps of a tiny model on the CPU, with changes."""
    monkeypatch.setattr(data, "TOKENIZER_SAMPLES", 200)

    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "run"),
            "train_data_dir": str(world),
            "model": MODEL,
            "max_sequence_length": 128,
            "train_batch_size": 4,
            "dataloader_num_workers": 0,
            "max_train_steps": 2,
            "learning_rate": 1e-3,
            "lr_warmup_steps": 1,
            "logging_steps": 1,
            "validation_samples": 6,
        }
        return TrainingConfig(**{**settings, **changes})

    return make
