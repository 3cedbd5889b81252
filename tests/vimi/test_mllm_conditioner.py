import copy
import json

import pytest
import torch
from PIL import Image
from transformers import AutoModel

from vimi_diffusers import default_checkpoint
from vimi_diffusers.vimi.mllm_conditioner import MLLMConditioner, MLLMConditionerConfig
from vimi_diffusers.vimi.tiny import build_conditioner, build_text_processor, build_tokenizer


TOKENS = 4  # of an image of 16 pixels in patches of 8


@pytest.fixture(scope="module")
def processor():
    return build_text_processor(build_tokenizer(["a red ball and a blue cube"], 300), image_size=16, patch_size=8)


@pytest.fixture(scope="module")
def conditioner(processor):
    torch.manual_seed(0)
    return build_conditioner(processor, 24, vision_dim=16, vision_layers=2, text_dim=32, text_layers=2, head_dim=16)


@pytest.fixture(scope="module")
def batch(processor):
    """Two images, none, and one."""
    red, blue = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    texts = ["a <image> red ball <image> and", "a blue cube", "<image> cube"]
    return processor(text=texts, images=[[red, blue], [], [blue]], padding=True, return_tensors="pt")


@torch.no_grad()
def run(model, **inputs):
    return model(**inputs)


def test_shape(conditioner, batch):
    output = run(conditioner, **batch)
    assert output.shape == (*batch["input_ids"].shape, 24) and output.isfinite().all()


def test_images_are_merged_as_llava_does(conditioner, batch):
    with torch.no_grad():
        theirs = conditioner.mllm.model(**batch).last_hidden_state
        expected = conditioner.proj(conditioner.norm(theirs))
    torch.testing.assert_close(run(conditioner, **batch), expected)


def test_each_placeholder_gets_its_own_features(conditioner, batch):
    ids = batch["input_ids"]
    features = torch.arange(3 * TOKENS, dtype=torch.float32)[:, None].expand(-1, 32)
    with torch.no_grad():
        embeds = conditioner.embed_inputs(ids, features)
        words = conditioner.mllm.get_input_embeddings()(ids)
    is_image = ids == conditioner.mllm.config.image_token_id
    assert torch.equal(embeds[is_image], features)
    assert torch.equal(embeds[~is_image], words[~is_image])


def test_gradients_reach_features_and_words(conditioner, batch):
    features = torch.randn(3 * TOKENS, 32, requires_grad=True)
    table = conditioner.mllm.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(
        conditioner.embed_inputs(batch["input_ids"], features).square().sum(), table, retain_graph=False
    )
    assert gradient.abs().max() > 0 and gradient[conditioner.mllm.config.image_token_id].abs().max() == 0
    (gradient,) = torch.autograd.grad(conditioner.embed_inputs(batch["input_ids"], features).sum(), features)
    assert torch.equal(gradient, torch.ones_like(gradient))


def test_images_count_and_keep_their_order(conditioner, batch):
    base = run(conditioner, **batch)
    swapped = batch["pixel_values"].clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    after = run(conditioner, **{**batch, "pixel_values": swapped})
    assert not torch.allclose(after[0], base[0], atol=1e-3)
    torch.testing.assert_close(after[1:], base[1:])


def test_padding_changes_nothing(conditioner, processor, batch):
    whole = run(conditioner, **batch)
    first = 0
    for row, count in enumerate((2, 0, 1)):
        length = int(batch["attention_mask"][row].sum())
        images = batch["pixel_values"][first : first + count] if count else None
        single = run(
            conditioner,
            input_ids=batch["input_ids"][row : row + 1, :length],
            attention_mask=batch["attention_mask"][row : row + 1, :length],
            pixel_values=images,
        )
        torch.testing.assert_close(whole[row, :length], single[0], rtol=1e-4, atol=1e-5)
        first += count


def test_masked_placeholders_at_the_end_change_nothing(conditioner, batch):
    """Training pads every prompt with placeholders of unused image slots, so that batches keep their shape."""
    whole = run(conditioner, **batch)
    image_token = conditioner.mllm.config.image_token_id
    extra = torch.full((3, TOKENS), image_token)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, TOKENS))
    images = batch["pixel_values"]
    slots = torch.stack([images[0], images[1], torch.zeros_like(images[0]), torch.ones_like(images[0]), images[2]])
    slots = torch.cat([slots, torch.full_like(slots[:1], -1)])
    padded = run(
        conditioner, input_ids=torch.cat([batch["input_ids"], extra], 1), attention_mask=mask, pixel_values=slots
    )
    # rows take their slots in order: 2 + 1, 0 + 1, 1 + 1
    torch.testing.assert_close(padded[0, : whole.shape[1]], whole[0], rtol=1e-4, atol=1e-5)
    used = int(batch["attention_mask"][2].sum())
    torch.testing.assert_close(padded[2, :used], whole[2, :used], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [2, 4])
def test_another_number_of_images_than_placeholders_is_refused(conditioner, batch, number, monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_DISABLE_TORCH_CHECK", raising=False)
    images = batch["pixel_values"][[0, 1, 2, 0]][:number]
    with pytest.raises(ValueError, match="placeholders and the images' features differ in number"):
        run(conditioner, **{**batch, "pixel_values": images})


def test_another_layer_may_give_the_embedding(conditioner, batch):
    states = None
    with torch.no_grad():
        states = conditioner.mllm.model(**batch, output_hidden_states=True).hidden_states
    for layer in (0, 1, -2):
        conditioner.config.hidden_layer = layer
        try:
            output = run(conditioner, **batch)
        finally:
            conditioner.config.hidden_layer = -1
        with torch.no_grad():
            torch.testing.assert_close(output, conditioner.proj(conditioner.norm(states[layer])))


def test_options_are_refused_before_anything_is_built():
    llava = MLLMConditionerConfig().mllm_config.to_dict() | {
        "text_config": {"model_type": "llama", "num_hidden_layers": 4}
    }
    for layer in (-5, 0, 4):
        assert MLLMConditionerConfig(mllm_config=llava, hidden_layer=layer).hidden_layer == layer
    for layer in (-6, 5):
        with pytest.raises(ValueError, match=f"`hidden_layer` {layer} is out of range.*4 layers, use -5 to 4"):
            MLLMConditionerConfig(mllm_config=llava, hidden_layer=layer)
    for name, value in (("crop_start", -1), ("num_queries", -1), ("num_query_layers", 0), ("output_dim", 0.5)):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least ., got {value}"):
            MLLMConditionerConfig(**{name: value})
    with pytest.raises(ValueError, match="model_type 'llavva', which this release of transformers does not know"):
        MLLMConditionerConfig(mllm_config={"model_type": "llavva"})


@pytest.mark.parametrize(
    ("model_type", "message"), [("llama", "'llama', which reads no images"), ("florence2", "encoder with a decoder")]
)
def test_models_without_multimodal_hidden_states_are_refused(model_type, message):
    with pytest.raises(ValueError, match=message):
        MLLMConditioner(MLLMConditionerConfig(mllm_config={"model_type": model_type}))


def test_hidden_states_of_another_width_are_refused(conditioner, batch):
    narrow = MLLMConditioner(MLLMConditionerConfig(mllm_config=conditioner.config.mllm_config, num_queries=2))
    narrow.norm = torch.nn.LayerNorm(16)
    with pytest.raises(ValueError, match="layer -1 have 32 channels, the connector takes 16"):
        run(narrow, **batch)


def test_prompts_without_tokens_are_refused(conditioner):
    with pytest.raises(ValueError, match="have no tokens"):
        run(conditioner, input_ids=torch.zeros(1, 0, dtype=torch.long))


def test_the_shipped_conditioner_loads_with_every_new_option_off():
    folder = default_checkpoint() / "text_encoder"
    stored = json.loads((folder / "config.json").read_text("utf-8"))
    loaded, info = MLLMConditioner.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    config = loaded.config
    assert (config.output_dim, config.hidden_layer) == (stored["output_dim"], stored["hidden_layer"])
    assert (config.crop_start, config.num_queries) == (0, 0) and not hasattr(loaded, "resampler")


def test_save_and_load(conditioner, batch, tmp_path):
    conditioner.save_pretrained(tmp_path)
    expected = run(conditioner, **batch)
    for cls in (MLLMConditioner, AutoModel):
        loaded = cls.from_pretrained(tmp_path)
        assert isinstance(loaded, MLLMConditioner) and not loaded.training
        assert torch.equal(run(loaded, **batch), expected)
    config = MLLMConditionerConfig.from_pretrained(tmp_path)
    assert config.output_dim == 24 and config.mllm_config.model_type == "llava"


def test_loading_in_another_dtype(conditioner, batch, tmp_path):
    conditioner.save_pretrained(tmp_path)
    loaded = MLLMConditioner.from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = run(loaded, **batch)  # pixels stay fp32, as the processor gives them
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), run(conditioner, **batch), rtol=0.1, atol=0.15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_is_loading_in_half_precision(conditioner, batch, tmp_path, dtype):
    """Rotary frequencies, which are not saved, must not be rounded."""
    conditioner.save_pretrained(tmp_path)
    cast, loaded = copy.deepcopy(conditioner).to(dtype), MLLMConditioner.from_pretrained(tmp_path, dtype=dtype)
    frequencies = "mllm.model.language_model.rotary_emb.inv_freq"
    assert cast.dtype == dtype and torch.equal(cast.get_buffer(frequencies), conditioner.get_buffer(frequencies))
    assert torch.equal(run(cast, **batch), run(loaded, **batch))
    assert cast.to("meta").get_buffer(frequencies).is_meta
