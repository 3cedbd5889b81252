"""What any pipeline of diffusers can do and what needs no code here: that it works all the same."""

import copy
import pickle

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, EDMEulerScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import export_to_gif, export_to_video

from vimi_diffusers import EDMVideoScheduler, VIMIPipeline, VIMITransformer3DModel, VIMIUpscalePipeline
from vimi_diffusers.vimi.tiny import build_tiny_components


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, prompt="a red ball", **arguments):
    arguments = {"num_inference_steps": 2, "generator": seeded(), "output_type": "pt", **arguments}
    return pipe(prompt, **arguments).frames


# ---------------------------------------------------------------- components, copies
def test_components_make_the_same_pipeline(tiny_pipeline):
    again = VIMIPipeline(**tiny_pipeline.components)
    again.set_progress_bar_config(disable=True)
    assert again.transformer is tiny_pipeline.transformer
    assert torch.equal(run(again), run(tiny_pipeline))


def test_an_upscaler_takes_the_conditioner_of_the_base(tiny_pipeline):
    config = {k: v for k, v in tiny_pipeline.transformer.config.items() if not k.startswith("_")}
    config |= {"in_channels": 6, "out_channels": 3, "height": 32, "width": 32, "noise_level_token": True}
    transformer = VIMITransformer3DModel(**config | {"input_skip": False}).eval()
    upscaler = VIMIUpscalePipeline.from_pipe(
        tiny_pipeline, transformer=transformer, scheduler=EDMVideoScheduler(sigma_in=4.0)
    )
    upscaler.set_progress_bar_config(disable=True)
    assert upscaler.text_encoder is tiny_pipeline.text_encoder and "vae" not in upscaler.components
    small = run(tiny_pipeline)
    large = upscaler(small, "a red ball", num_inference_steps=1, generator=seeded(), output_type="pt").frames
    assert large.shape == (1, 4, 3, 32, 32)
    with pytest.raises(ValueError, match="no upscaler"):
        VIMIUpscalePipeline.from_pipe(tiny_pipeline)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))], ids=["copy", "pickle"])
def test_copies_make_the_same_video(tiny_pipeline, how):
    expected = run(tiny_pipeline)  # also leaves the state of a finished run in the pipeline
    again = how(tiny_pipeline)
    assert again.transformer is not tiny_pipeline.transformer
    assert torch.equal(run(again), expected)


def test_device_and_dtype_are_those_of_the_weights(tiny_pipeline):
    assert (tiny_pipeline.device, tiny_pipeline.dtype) == (torch.device("cpu"), torch.float32)
    assert tiny_pipeline.to(torch.bfloat16) is tiny_pipeline
    assert tiny_pipeline.dtype == tiny_pipeline.text_encoder.dtype == torch.bfloat16
    cast = VIMIPipeline.from_pipe(tiny_pipeline, dtype=torch.float16)
    assert {parameter.dtype for parameter in cast.transformer.parameters()} == {torch.float16}
    assert VIMIPipeline.from_pipe(cast).dtype == torch.float32  # as for every pipeline of diffusers


# ---------------------------------------------------------------- calls
class Recorder(PipelineCallback):
    tensor_inputs = ["latents"]

    def __init__(self):
        super().__init__()
        self.seen = []

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        self.seen.append((step_index, tuple(callback_kwargs["latents"].shape)))
        return callback_kwargs


def test_callback_classes_of_diffusers(tiny_pipeline):
    alone, first, second = Recorder(), Recorder(), Recorder()
    run(tiny_pipeline, callback_on_step_end=alone)
    assert alone.seen == [(step, (1, 3, 4, 16, 16)) for step in range(3)]
    run(tiny_pipeline, callback_on_step_end=MultiPipelineCallbacks([first, second]))
    assert first.seen == second.seen == alone.seen


def test_progress_bar_can_be_configured(capfd):
    pipe = VIMIPipeline(**build_tiny_components())
    pipe.set_progress_bar_config(desc="frames from noise")
    run(pipe)
    assert "frames from noise: 100%" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    run(pipe)
    assert "100%" not in capfd.readouterr().err


def test_attention_slicing_changes_nothing(tiny_pipeline):
    expected = run(tiny_pipeline)
    tiny_pipeline.enable_attention_slicing()
    assert torch.equal(run(tiny_pipeline), expected)


def test_autocast(tiny_pipeline):
    expected = run(tiny_pipeline, num_inference_steps=1)
    with torch.autocast("cpu", torch.bfloat16):
        frames = run(tiny_pipeline, num_inference_steps=1)
    assert not torch.equal(frames, expected)
    torch.testing.assert_close(frames, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("output_type", ["np", "pil"])
def test_frames_are_exported_by_diffusers(tiny_pipeline, output_type, tmp_path):
    frames = run(tiny_pipeline, output_type=output_type)[0]
    export_to_video(frames, str(tmp_path / "video.mp4"), fps=5)
    assert iio.imread(tmp_path / "video.mp4").shape == (4, 16, 16, 3)
    if output_type == "pil":
        export_to_gif(frames, str(tmp_path / "video.gif"))
        written = iio.imread(tmp_path / "video.gif").astype(int)
        assert np.abs(written - np.stack([np.asarray(frame) for frame in frames]).astype(int)).mean() < 8


# ---------------------------------------------------------------- an autoencoder
def test_autoencoder_is_saved_sliced_and_offloaded(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=3, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, 0.2, 0.3], latents_std=[1.0, 2.0, 0.5], scale_factor_temporal=2, scale_factor_spatial=2,
    ).eval()  # fmt: skip
    VIMIPipeline(**build_tiny_components() | {"vae": vae}).save_pretrained(tmp_path)
    pipe = VIMIPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.vae) is AutoencoderKLWan
    arguments = {"num_videos_per_prompt": 2, "guidance_scale": 1.0}
    expected = run(pipe, **arguments)
    assert expected.shape == (2, 7, 3, 32, 32)
    pipe.vae.enable_slicing()
    torch.testing.assert_close(run(pipe, **arguments), expected, atol=1e-4, rtol=0)
    decoded = []
    pipe.vae.decoder.register_forward_hook(lambda module, args, output: decoded.append(output.shape[-2:]))
    pipe.vae.enable_tiling(
        tile_sample_min_height=16, tile_sample_min_width=16, tile_sample_stride_height=12, tile_sample_stride_width=12
    )
    assert run(pipe, **arguments).shape == expected.shape and (32, 32) not in decoded
    pipe.vae.disable_tiling()
    pipe.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(run(pipe, **arguments), expected, atol=1e-4, rtol=0)
    beginning = torch.rand(1, 3, 3, 32, 32, generator=seeded())  # encoded first, out of the models' order
    assert run(pipe, video=beginning, **arguments).isfinite().all()


# ---------------------------------------------------------------- what there is not
@pytest.mark.parametrize(
    "name",
    [
        "from_single_file",
        "load_ip_adapter",
        "load_textual_inversion",
        "enable_freeu",
        "enable_vae_slicing",
        "enable_vae_tiling",
        "fuse_qkv_projections",
    ],
)
def test_what_is_not_offered_is_not_there(name):
    assert not hasattr(VIMIPipeline, name) and not hasattr(VIMIUpscalePipeline, name)


@pytest.mark.parametrize("name", ["image", "strength", "timesteps", "eta", "clip_skip", "ip_adapter_image"])
def test_arguments_of_other_pipelines_are_refused(tiny_pipeline, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        tiny_pipeline("a red ball", **{name: 1})


def test_the_scheduler_must_be_ours(tiny_pipeline):
    tiny_pipeline.scheduler = EDMEulerScheduler()
    tiny_pipeline.text_encoder.forward = None  # said before any model runs
    with pytest.raises(ValueError, match="needs an `EDMVideoScheduler`, got EDMEulerScheduler"):
        run(tiny_pipeline)
