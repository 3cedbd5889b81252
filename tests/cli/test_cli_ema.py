"""`vimi ema` from the command line."""

import torch
import typer
from safetensors import safe_open
from typer.testing import CliRunner

from vimi_diffusers import VIMIPipeline
from vimi_diffusers.cli.ema import ema
from vimi_diffusers.training.ema import PowerEMA, reconstruct
from vimi_diffusers.vimi.tiny import build_tiny_components


app = typer.Typer()
app.command()(ema)


def follow(folder, components, steps=6):
    averages = PowerEMA.from_components(components, [0.05, 0.1])
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for parameter in averages.parameters:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        averages.update(step)
        if step % 2 == 0:
            averages.save_snapshot(folder / "ema")


def test_a_pipeline_of_another_averaging_length(tmp_path):
    components = build_tiny_components()
    follow(tmp_path, components)
    VIMIPipeline(**components).save_pretrained(tmp_path / "pipeline")
    result = CliRunner().invoke(app, [str(tmp_path), str(tmp_path / "out"), "--sigma-rel", "0.08", "--step", "4"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'out'}: sigma_rel 0.08, its profile fitted to ")
    weights, error = reconstruct(tmp_path / "ema", 0.08, step=4)
    assert f"{error:.2%}" in result.stdout
    made = VIMIPipeline.from_pretrained(tmp_path / "out")
    for part in ("transformer", "text_encoder"):
        for name, parameter in getattr(made, part).named_parameters():
            assert torch.equal(parameter, weights[f"{part}.{name}"]), name


def test_lora_weights_of_another_averaging_length(tmp_path):
    from vimi_diffusers.training.lora import add_lora, save_lora

    components = build_tiny_components()
    add_lora(components, {"transformer": {"rank": 2, "alpha": 6}})
    follow(tmp_path, components)
    save_lora(components, tmp_path / "lora")
    result = CliRunner().invoke(app, [str(tmp_path), str(tmp_path / "out"), "--sigma-rel", "0.08"])
    assert result.exit_code == 0, result.output
    weights, _ = reconstruct(tmp_path / "ema", 0.08)
    with safe_open(tmp_path / "out" / "pytorch_lora_weights.safetensors", "pt") as file:
        assert '"transformer.lora_alpha": 6' in file.metadata()["lora_adapter_metadata"]
    pipe = VIMIPipeline(**build_tiny_components())
    pipe.load_lora_weights(tmp_path / "out", adapter_name="default")
    loaded = dict(pipe.transformer.named_parameters())
    assert weights and all(torch.equal(loaded[name.removeprefix("transformer.")], w) for name, w in weights.items())


def test_errors_are_of_the_kind_that_the_command_shows(tmp_path):
    result = CliRunner().invoke(app, [str(tmp_path), str(tmp_path / "out"), "--sigma-rel", "0.08"])
    assert isinstance(result.exception, ValueError) and "holds no snapshots" in str(result.exception)
    assert not (tmp_path / "out").exists()
