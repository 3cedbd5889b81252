import pytest
import torch

from vimi_diffusers.training.components import build_components, extend_transformer
from vimi_diffusers.vimi.pipeline_vimi import VIMIPipeline


TEXTS = ["a fox walks in a grassy park", "an elephant stays still over a calm sea"]


def test_components_follow_the_model_section(make_config):
    config = make_config()
    built = build_components(config, TEXTS)
    assert built.keys() == {"text_encoder", "text_processor", "transformer", "scheduler"}
    assert built["transformer"].config.patch_dim == 24 and built["scheduler"].config.sigma_in == 2.0
    assert built["text_encoder"].config.output_dim == built["transformer"].config.condition_dim == 16
    assert built["text_processor"].image_processor.crop_size["height"] == 16
    assert len(built["text_processor"].tokenizer) <= 400


def test_weights_are_a_function_of_the_seed(make_config):
    first, again, other = (build_components(make_config(seed=seed), TEXTS) for seed in (0, 0, 1))
    for name in ("text_encoder", "transformer"):
        weights = [torch.cat([p.flatten() for p in c[name].parameters()]) for c in (first, again, other)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_pretrained_pipeline_may_get_new_options(make_config, tmp_path):
    built = build_components(make_config(), TEXTS)
    torch.nn.init.normal_(built["transformer"].proj_out.weight, std=0.3)
    VIMIPipeline(**built).save_pretrained(tmp_path / "pipeline")
    stage_two = {"pretrained_model_name_or_path": str(tmp_path / "pipeline")}
    config = make_config(**stage_two, model={"transformer": {"patch_condition": True}})
    extended = build_components(config, ())["transformer"]
    assert extended.config.patch_condition and extended.config.patch_dim == 24
    old, new = built["transformer"].state_dict(), extended.state_dict()
    assert all(torch.equal(new[name], weight) for name, weight in old.items())
    assert {name.split(".")[2] for name in new.keys() - old.keys()} == {"condition_to_latent"}
    with pytest.raises(ValueError, match=r"can only change `transformer`, not \['scheduler'\]"):
        build_components(make_config(**stage_two, model={"scheduler": {"sigma_in": 4.0}}), ())


@pytest.mark.parametrize("change", [{"patch_dim": 48}, {"patch_attention": False}, {"num_latents": 16}])
def test_options_that_lose_weights_are_refused(make_config, change):
    transformer = build_components(make_config(), TEXTS)["transformer"]
    assert extend_transformer(transformer, {}) is transformer
    with pytest.raises(ValueError, match="do not fit the pretrained weights: .* has no place any more"):
        extend_transformer(transformer, change)
