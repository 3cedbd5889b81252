"""A run whose conditioner is read from the cache: the same weights, and no pass for what is known."""

import pytest
import torch
from media_files import numbered_folder

from vimi_diffusers import VIMIPipeline
from vimi_diffusers.training.loop import Trainer
from vimi_diffusers.vimi.tiny import build_tiny_components


@pytest.fixture
def cached_config(make_config, tmp_path):
    VIMIPipeline(**build_tiny_components()).save_pretrained(tmp_path / "base")
    numbered_folder(tmp_path / "set", 6)

    def make(name, **changes):
        settings = {
            "output_dir": str(tmp_path / name),
            "train_data_dir": str(tmp_path / "set"),
            "model": {},
            "pretrained_model_name_or_path": str(tmp_path / "base"),
            "freeze_conditioner": True,
            "video_buckets": ["4x16x16@4"],
            "max_sequence_length": 64,
            "condition_dropout": 0.2,
            "max_train_steps": 4,
        }
        return make_config(**{**settings, **changes})

    return make


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_weights_from_the_cache(cached_config, tmp_path, workers, mixed_precision):
    options = {"dataloader_num_workers": workers, "mixed_precision": mixed_precision}
    plain = Trainer(cached_config("plain", **options))
    plain.run()
    cache = {"condition_cache_dir": str(tmp_path / "cache"), **options}
    for name, known in (("first", False), ("second", True)):
        trainer = Trainer(cached_config(name, **cache))
        trainer.run()
        assert trainer.condition_cache.hits + trainer.condition_cache.misses > 0
        assert (trainer.condition_cache.misses == 0) == known
        for one, other in zip(plain.model.parameters(), trainer.model.parameters()):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-4 if mixed_precision == "no" else 2e-3)


def test_emoji_world_has_no_use_for_a_cache(make_config, tmp_path):
    config = make_config(condition_cache_dir=str(tmp_path / "cache"), freeze_conditioner=True)
    with pytest.raises(ValueError, match="Emoji world draws each image anew"):
        Trainer(config)
