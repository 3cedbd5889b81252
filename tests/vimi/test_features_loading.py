"""Options of `from_pretrained` and `save_pretrained` that pipelines of diffusers have."""

import pytest
import torch
from diffusers import DiffusionPipeline

from vimi_diffusers import VIMIPipeline, VIMITransformer3DModel


@pytest.fixture(scope="module")
def expected(tiny_checkpoint):
    return run(load(tiny_checkpoint))


def load(*arguments, **options):
    pipe = DiffusionPipeline.from_pretrained(*arguments, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, **arguments):
    generator = torch.Generator().manual_seed(0)
    return pipe("a red ball", num_inference_steps=2, generator=generator, output_type="pt", **arguments).frames


def dtypes(model):
    return {parameter.dtype for parameter in model.parameters()}


def test_variant(tiny_pipeline, tmp_path):
    tiny_pipeline.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    weights = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert weights == {"model.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
    pipe = load(tmp_path, variant="fp16", dtype=torch.float16)
    assert dtypes(pipe.transformer) == dtypes(pipe.text_encoder) == {torch.float16}
    assert torch.equal(run(pipe), run(tiny_pipeline))
    with pytest.raises(OSError, match="no file named"):
        load(tmp_path)


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_dtype_of_each_component(tiny_checkpoint, default):
    other = torch.bfloat16 if default == torch.float32 else torch.float32
    pipe = load(tiny_checkpoint, dtype={"transformer": other, "default": default})
    assert dtypes(pipe.transformer) == {other} and dtypes(pipe.text_encoder) == {default}
    assert run(pipe).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [{"low_cpu_mem_usage": True}, {"low_cpu_mem_usage": False}, {"device_map": "cpu"}, {"use_safetensors": True}],
    ids=str,
)
def test_ways_to_load_give_the_same(tiny_checkpoint, expected, options):
    assert torch.equal(run(load(tiny_checkpoint, **options)), expected)


def test_a_device_map_can_be_reset(tiny_checkpoint, expected):
    pipe = load(tiny_checkpoint, device_map="cpu")
    assert pipe.hf_device_map == "cpu"
    pipe.reset_device_map()
    assert pipe.hf_device_map is None and torch.equal(run(pipe), expected)


def test_components_can_be_left_out(tiny_checkpoint, expected):
    text = load(tiny_checkpoint, transformer=None, scheduler=None)
    with torch.no_grad():
        embeds, negative, mask, negative_mask = text.encode_prompt("a red ball")
    pipe = load(tiny_checkpoint, text_encoder=None, text_processor=None)
    assert pipe.text_encoder is None
    frames = pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        prompt_attention_mask=mask,
        negative_prompt_attention_mask=negative_mask,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames
    assert torch.equal(frames, expected)


def test_quantised_while_loading(tiny_checkpoint, expected, tmp_path):
    pytest.importorskip("torchao", reason="quantises on the CPU")
    import transformers
    from diffusers import PipelineQuantizationConfig, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    config = PipelineQuantizationConfig(
        quant_mapping={
            "transformer": TorchAoConfig(Int8WeightOnlyConfig()),
            "text_encoder": transformers.TorchAoConfig(Int8WeightOnlyConfig()),
        }
    )
    pipe = load(tiny_checkpoint, quantization_config=config, dtype=torch.float32)
    for model, layer in ((pipe.transformer, "to_q.weight"), (pipe.text_encoder, "up_proj.weight")):
        kinds = {type(weight).__name__ for name, weight in model.named_parameters() if name.endswith(layer)}
        assert kinds == {"Int8Tensor"}
    frames = run(pipe)
    assert 0 < (frames - expected).abs().mean() < 0.02
    pipe.save_pretrained(tmp_path)
    assert torch.equal(run(load(tmp_path, dtype=torch.float32)), frames)


def test_a_generator_from_its_configuration(tiny_checkpoint):
    config = VIMITransformer3DModel.load_config(tiny_checkpoint, subfolder="transformer")
    model = VIMITransformer3DModel.from_config(config, num_layers=3)
    assert len(model.transformer_blocks) == 3 and VIMIPipeline.load_config(tiny_checkpoint)["checkpoint_version"] == 1
