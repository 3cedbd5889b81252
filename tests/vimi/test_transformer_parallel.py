"""Context parallelism over two processes: groups are split, the latents' self-attention talks."""

from pathlib import Path

import pytest
import torch
from diffusers.models._modeling_parallel import ContextParallelConfig
from tiny_transformer import make, make_inputs, run
from torch import distributed, multiprocessing

from vimi_diffusers.vimi.transformer_vimi import VIMITransformer3DModel


OPTIONS = {"patch_attention": True, "patch_condition": True, "modulation": True, "input_skip": True,
           "self_conditioning": True, "num_latent_layers": 2}  # fmt: skip


def test_the_plan_names_modules_and_their_inputs():
    model = make(**OPTIONS)
    plan = VIMITransformer3DModel._cp_plan
    assert set(plan) == {"transformer_blocks.0", "proj_out", "latents_out"}
    for name in plan:
        model.get_submodule(name)
    # of all attention only that of the latents has its keys on other devices
    spanning = {name for name, module in model.named_modules() if getattr(module, "spans_devices", False)}
    assert spanning == {f"transformer_blocks.{i}.latent_layers.{j}.attn" for i in range(2) for j in range(2)}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers numbers the devices, also where there is but the CPU
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, single = make(**OPTIONS), make(**OPTIONS)
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    inputs, lengths = make_inputs(model, height=24, width=16), []  # 6 groups
    inputs["encoder_attention_mask"][1, 2:] = False
    model.transformer_blocks[1].write.register_forward_hook(lambda *args: lengths.append(args[2].shape))
    with torch.no_grad():
        first, expected = model(**inputs), single(**inputs)
        second = model(**inputs, previous_latents=first.latents)
        expected_second = run(single, **inputs, previous_latents=expected.latents)
    assert lengths[0] == (2 * 3, 4 * 2 * 2, 24)  # of 6 groups 3 are here
    torch.testing.assert_close(first.sample, expected.sample, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first.latents, expected.latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second.sample, expected_second, atol=1e-5, rtol=1e-5)
    for height in (8, 24):  # 1 and 3 groups cannot be split over two devices
        with pytest.raises(ValueError, match="number of groups is a multiple of the number of devices"):
            model(**make_inputs(model, height=height, width=8))
    (Path(folder) / f"done{rank}").touch()
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_give_what_one_gives(tmp_path):
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    assert {path.name for path in tmp_path.glob("done*")} == {"done0", "done1"}
