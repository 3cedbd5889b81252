"""The conditioner over tiny models of each family: what holds for one holds for all."""

import pytest
import torch
from mllm_families import FAMILIES, IDEFICS_TEMPLATE, QWEN_TEMPLATE, Family, build, processor, tokenizer
from PIL import Image
from transformers import AutoModel

from vimi_diffusers.vimi.mllm_conditioner import MLLMConditioner, QueryBlock
from vimi_diffusers.vimi.mllm_text import chat_prefix_length, format_mllm_text


TEXTS = ["a IMG red ball IMG and", "a blue cube", "IMG cube"]


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = torch.randint(0, 255, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


IMAGES = [[picture((16, 16), 0), picture((32, 16), 1)], [], [picture((24, 24), 2)]]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return Family(request.param)


@pytest.fixture(scope="module")
def conditioner(family):
    return build(family.name)


@pytest.fixture(scope="module")
def batch(family):
    return family.encode(TEXTS, IMAGES)


@torch.no_grad()
def run(model, **inputs):
    return model(**inputs)


def assert_batch_equals_singles(model, family, side):
    batch = family.encode(TEXTS, IMAGES, side)
    assert not batch["attention_mask"].bool().all()
    whole, mask = run(model, **batch), model.condition_mask(batch["attention_mask"])
    assert whole.shape[:2] == mask.shape and whole.isfinite().all()
    for row, (text, images) in enumerate(zip(TEXTS, IMAGES)):
        single = run(model, **family.encode([text], [images]))[0]
        torch.testing.assert_close(whole[row][mask[row]], single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_equals_its_singles(conditioner, family, side):
    assert_batch_equals_singles(conditioner, family, side)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("options", [{"crop_start": 2}, {"num_queries": 5, "crop_start": 2}])
def test_a_batch_equals_its_singles_with_options(family, side, options):
    assert_batch_equals_singles(build(family.name, hidden_layer=-2, **options), family, side)


@pytest.mark.parametrize("row", [0, 1], ids=["with images", "text"])
def test_left_padding_moves_no_position(conditioner, family, row):
    """In half precision another angle is another rounding, so equal positions matter though only differences count."""
    positions = []
    hook = conditioner.mllm.get_decoder().rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: positions.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    single = family.encode(TEXTS[row : row + 1], IMAGES[row : row + 1])
    padded = dict(single)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in single:
            padded[name] = torch.nn.functional.pad(single[name], (40, 0))
    with hook:
        run(conditioner, **single)
        run(conditioner, **padded)
    assert torch.equal(positions[1][..., 40:], positions[0]) and positions[0].max() > 1


def test_the_hidden_states_are_the_models_own(conditioner, batch):
    with torch.no_grad():
        theirs = conditioner.mllm.model(**batch, output_hidden_states=True)
        expected = conditioner.proj(conditioner.norm(theirs.last_hidden_state))
        middle = conditioner.proj(conditioner.norm(theirs.hidden_states[1]))
    torch.testing.assert_close(run(conditioner, **batch), expected, rtol=1e-5, atol=1e-5)
    conditioner.config.hidden_layer = 1
    try:
        torch.testing.assert_close(run(conditioner, **batch), middle, rtol=1e-5, atol=1e-5)
    finally:
        conditioner.config.hidden_layer = -1


def test_images_count(conditioner, batch):
    changed = {**batch, "pixel_values": batch["pixel_values"].flip(-1)}
    difference = (run(conditioner, **changed) - run(conditioner, **batch)).abs().amax(dim=(1, 2))
    assert difference[0] > 1e-3 and difference[2] > 1e-3 and difference[1] < 1e-4


def test_the_start_is_cropped_from_c_and_mask_but_not_from_what_the_model_reads(conditioner, family):
    cropped = MLLMConditioner.from_mllm(conditioner.mllm, output_dim=24, crop_start=3)
    cropped.norm, cropped.proj = conditioner.norm, conditioner.proj
    for side in ("right", "left"):
        batch = family.encode(TEXTS, IMAGES, side)
        whole, mask = run(conditioner, **batch), batch["attention_mask"].bool()
        part, part_mask = run(cropped, **batch), cropped.condition_mask(batch["attention_mask"])
        assert part.shape[1] == part_mask.shape[1] == whole.shape[1] - 3
        for row in range(3):
            expected = whole[row][mask[row]][3:]
            torch.testing.assert_close(part[row][part_mask[row]], expected)


def test_a_crop_that_leaves_nothing_is_refused(family, monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_DISABLE_TORCH_CHECK", raising=False)
    batch = family.encode(TEXTS, IMAGES)
    shortest = int(batch["attention_mask"].sum(1).min())
    run(build(family.name, crop_start=shortest - 1), **batch)
    model = build(family.name, crop_start=shortest)
    message = f"`crop_start` {shortest} leaves nothing of a prompt of {shortest} tokens"
    with pytest.raises(ValueError, match=message):
        model.condition_mask(batch["attention_mask"])
    with pytest.raises(ValueError, match=message):
        run(model, **batch)


def test_queries_give_a_fixed_number_of_tokens(family, batch):
    model = build(family.name, num_queries=5)
    output = run(model, **batch)
    assert output.shape == (3, 5, 24)
    mask = model.condition_mask(batch["attention_mask"])
    assert mask.shape == (3, 5) and mask.dtype == torch.bool and mask.all()
    assert (output[:, 0] - output[:, 1]).abs().amax() > 1e-3, "queries are alike"
    model.train()(**batch).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in (model.resampler.queries, model.proj.weight))
    assert model.get_input_embeddings().weight.grad.abs().max() > 0


def test_query_block_is_masked_softmax_attention():
    torch.manual_seed(0)
    block = QueryBlock(128).double()
    queries, states = torch.randn(2, 3, 128).double(), torch.randn(2, 7, 128).double()
    mask = torch.arange(7)[None] < torch.tensor([[7], [4]])
    attended = torch.zeros_like(queries)
    key, value = block.to_kv(states).chunk(2, -1)
    query = block.to_q(block.norm_query(queries))
    assert block.num_heads == 2
    for head in (slice(0, 64), slice(64, 128)):
        scores = query[..., head] @ key[..., head].mT / 8 + torch.where(mask, 0.0, -torch.inf)[:, None]
        attended[..., head] = scores.softmax(-1) @ value[..., head]
    expected = queries + block.to_out(attended)
    expected = expected + block.mlp(block.norm_mlp(expected))
    torch.testing.assert_close(block(queries, states, mask), expected)


@pytest.mark.parametrize("options", [{}, {"num_queries": 4, "crop_start": 1, "num_query_layers": 1}])
def test_save_and_load(family, batch, options, tmp_path):
    model = build(family.name, **options)
    expected = run(model, **batch)
    model.save_pretrained(tmp_path)
    for cls in (MLLMConditioner, AutoModel):
        loaded = cls.from_pretrained(tmp_path)
        assert isinstance(loaded, MLLMConditioner) and torch.equal(run(loaded, **batch), expected)
    assert all(getattr(loaded.config, name) == value for name, value in options.items())


def test_eager_attention_equals_sdpa(conditioner, family, batch, tmp_path):
    conditioner.save_pretrained(tmp_path)
    eager = MLLMConditioner.from_pretrained(tmp_path, attn_implementation="eager")
    assert {module.config._attn_implementation for module in eager.mllm.modules() if hasattr(module, "config")} == {
        "eager"
    }
    mask = batch["attention_mask"].bool()
    expected = run(conditioner, **batch)[mask]
    torch.testing.assert_close(run(eager, **batch)[mask], expected, rtol=1e-4, atol=1e-5)
    eager.set_attn_implementation("sdpa")
    torch.testing.assert_close(run(eager, **batch)[mask], expected)


def test_gradient_checkpointing_changes_no_gradient(family, batch):
    gradients, calls = [], []
    for enabled in (False, True):
        model = build(family.name).train()
        if enabled:
            model.gradient_checkpointing_enable()
        count = []
        model.mllm.get_decoder().layers[0].self_attn.register_forward_hook(lambda *_, count=count: count.append(1))
        model(**batch).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        calls.append(len(count))
    assert calls == [1, 2]  # the second forward pass of the backward pass
    torch.testing.assert_close(*gradients)


def test_dtype_of_everything(family, batch, conditioner, tmp_path):
    conditioner.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        loaded = MLLMConditioner.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        output = run(loaded, **batch)  # pixels stay fp32, as the processor gives them
        assert output.dtype == dtype
        mask = batch["attention_mask"].bool()
        torch.testing.assert_close(output.float()[mask], run(conditioner, **batch)[mask], rtol=0.1, atol=0.25)
    loaded.norm.float(), loaded.proj.float()  # a connector that trains in fp32 on a frozen half-precision model
    assert run(loaded, **batch).dtype == torch.float32


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_token_kinds_are_known_without_the_processor(name):
    """Without them Qwen2.5-VL would silently take images for text when it counts positions."""
    family, model = Family(name), build(name)
    batch = family.encode(TEXTS, IMAGES)
    expected = run(model, **batch)
    kinds = batch.pop("mm_token_type_ids")
    assert kinds.any()
    assert torch.equal(run(model, **batch), expected)


def check_processor(name, made, image_token):
    """What a real processor returns serves the conditioner, and is what the tests above build by hand."""
    texts = [format_mllm_text(made, text.replace("IMG", image_token)) for text in TEXTS]
    options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    inputs = made(text=texts, images=IMAGES, **options)
    model, by_hand = build(name), Family(name).encode(TEXTS, IMAGES)
    for key, value in by_hand.items():
        if key != "pixel_values":  # other code resizes
            assert torch.equal(inputs[key], value), key
    output = run(model, **inputs)
    mask = model.condition_mask(inputs["attention_mask"])
    assert output.shape[:2] == mask.shape and output.isfinite().all()
    without = made(text=texts[1:2], images=None, **options)
    torch.testing.assert_close(run(model, **without)[0], output[1][mask[1]], rtol=1e-4, atol=1e-4)


def test_idefics3_processor():
    check_processor("idefics3", processor("idefics3"), "<image>")
    assert processor("idefics3").chat_template == IDEFICS_TEMPLATE


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_processors(name):
    pytest.importorskip("torchvision", reason="the processor's video part needs torchvision")
    import transformers

    prefix, videos = {"qwen2_5_vl": ("Qwen2_5_VL", "Qwen2VL"), "qwen3_vl": ("Qwen3VL", "Qwen3VL")}[name]
    images = transformers.Qwen2VLImageProcessor(
        size={"shortest_edge": 256, "longest_edge": 1024}, patch_size=4, merge_size=2, temporal_patch_size=2
    )
    made = getattr(transformers, f"{prefix}Processor")(
        images, tokenizer(name), getattr(transformers, f"{videos}VideoProcessor")(), chat_template=QWEN_TEMPLATE
    )
    check_processor(name, made, "<|image_pad|>")
    length = chat_prefix_length(made)
    tokens = made.tokenizer.tokenize(format_mllm_text(made, "Generate", chat=True), add_special_tokens=True)
    assert "".join(tokens[length:]).startswith("Generate")


def test_smolvlm_processor():
    pytest.importorskip("torchvision", reason="the processor's video part needs torchvision")
    pytest.importorskip("num2words", reason="the processor needs num2words")
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    images = SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    check_processor(
        "smolvlm", SmolVLMProcessor(images, tokenizer("smolvlm"), SmolVLMVideoProcessor(), image_seq_len=4), "<image>"
    )
