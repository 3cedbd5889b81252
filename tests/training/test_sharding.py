from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from resumable_run import cut_off, recorded, run
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from vimi_diffusers.training.checkpoints import list_checkpoints, read_record
from vimi_diffusers.training.sharding import check_sharding
from vimi_diffusers.vimi.pipeline_vimi import VIMIPipeline


CONFIGS = Path(__file__).parents[2] / "training_scripts/configs/accelerate"


def launched_environment(name):
    """What `accelerate launch --config_file` tells the processes about sharding."""
    args = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "script.py"])
    defaults = load_config_from_file(args.config_file)
    args.use_fsdp = defaults.distributed_type == DistributedType.FSDP
    for key, value in {**vars(defaults), **defaults.fsdp_config}.items():
        if hasattr(args, key) and key not in ("fsdp_config", "deepspeed_config", "dynamo_config"):
            setattr(args, key, value)
    args.mixed_precision, args.gpu_ids, args.dynamo_backend = defaults.mixed_precision, "all", "no"
    environment = prepare_multi_gpu_env(args)
    return {key: value for key, value in environment.items() if key.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}


@pytest.fixture
def values(make_config):
    validation = {"validation_steps": 4, "num_validation_videos": 1}
    return vars(make_config(max_train_steps=4, lr_scheduler="cosine", checkpointing_steps=2, **validation))


def tensors(folder, whole):
    """What the processes of a sharded checkpoint wrote, in one piece."""
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        dcp_to_torch_save(folder / "sharded" / part, whole / f"{part}.pt")
    found = {"model": torch.load(whole / "pytorch_model_fsdp_0.pt"), "optimizer": torch.load(whole / "optimizer_0.pt")}
    found |= {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}
    leaves, _ = torch.utils._pytree.tree_flatten_with_path(found)
    return {torch.utils._pytree.keystr(path): leaf for path, leaf in leaves}


def deepspeed_environment(name):
    """What `accelerate launch --config_file` tells the processes about DeepSpeed."""
    args = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "script.py"])
    defaults = load_config_from_file(args.config_file)
    for key, value in {**vars(defaults), **defaults.deepspeed_config}.items():
        if hasattr(args, key) and key not in ("fsdp_config", "deepspeed_config", "dynamo_config"):
            setattr(args, key, value)
    args.use_deepspeed, args.deepspeed_fields_from_accelerate_config = True, ",".join(defaults.deepspeed_config)
    _, environment = prepare_deepspeed_cmd_env(args)
    return {key: value for key, value in environment.items() if key.startswith("ACCELERATE_") and value != "None"}


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_gives_ddps_weights_and_resumes_exactly(values, tmp_path, stage):
    pytest.importorskip("deepspeed")
    values["ema_decay"] = 0  # ZeRO-3 cannot average
    zero = deepspeed_environment(f"zero{stage}")
    assert zero["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    run({**values, "output_dir": str(tmp_path / "ddp")}, tmp_path / "ddp.txt", 2)
    run({**values, "output_dir": str(tmp_path / "zero")}, tmp_path / "zero.txt", 2, **zero)
    assert recorded(tmp_path / "ddp.txt.1") == recorded(tmp_path / "zero.txt.1")
    cut = {**values, "output_dir": str(tmp_path / "cut"), "resume_from_checkpoint": "latest"}
    run({**cut, "max_train_steps": 2, "allow_changed": ["max_train_steps"]}, tmp_path / "cut.txt", 2, **zero)
    run({**cut, "allow_changed": ["max_train_steps"]}, tmp_path / "cut.txt", 2, **zero)
    pipelines = [VIMIPipeline.from_pretrained(tmp_path / name / "pipeline") for name in ("ddp", "zero", "cut")]
    for name in ("text_encoder", "transformer"):
        ddp, straight, resumed = (pipeline.components[name].state_dict() for pipeline in pipelines)
        assert ddp.keys() == straight.keys() == resumed.keys()
        for key in ddp:
            torch.testing.assert_close(straight[key], ddp[key], rtol=1e-4, atol=1e-5, msg=key)
            assert torch.equal(straight[key], resumed[key]), key


def test_fsdp2_gives_ddps_weights_and_resumes_exactly(values, tmp_path):
    fsdp2 = launched_environment("fsdp2")
    assert fsdp2["FSDP_VERSION"] == "2" and fsdp2["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"
    run({**values, "output_dir": str(tmp_path / "ddp")}, tmp_path / "ddp.txt", 2)
    run({**values, "output_dir": str(tmp_path / "fsdp")}, tmp_path / "fsdp.txt", 2, **fsdp2)
    assert (tmp_path / "fsdp/samples/step-4/00.png").is_file()
    assert recorded(tmp_path / "ddp.txt.1") == recorded(tmp_path / "fsdp.txt.1")
    ddp, fsdp = (VIMIPipeline.from_pretrained(tmp_path / name / "pipeline") for name in ("ddp", "fsdp"))
    for name in ("text_encoder", "transformer"):
        first, second = ddp.components[name].state_dict(), fsdp.components[name].state_dict()
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=1e-4, atol=1e-5, msg=key)

    cut = {**values, "output_dir": str(tmp_path / "cut"), "resume_from_checkpoint": "latest"}
    cut_off(cut, tmp_path / "cut.txt", 2, kill_at=("rename", 6), **fsdp2)  # of a checkpoint: two by torch, one by us
    assert [path.name for path in list_checkpoints(tmp_path / "cut")] == ["checkpoint-2"]
    run(cut, tmp_path / "cut.txt", 2, **fsdp2)
    folders = [tmp_path / name / "checkpoint-4" for name in ("fsdp", "cut")]
    assert all(read_record(folder)["sharding"] == "FSDP" for folder in folders)
    straight, resumed = (tensors(folder, tmp_path) for folder in folders)
    assert straight.keys() == resumed.keys()
    for part in ("'model'", "'optimizer'", "'process_1.pt']['ema']", "'process_1.pt']['rng']"):
        assert any(part in key for key in straight), part
    different = [
        key for key, value in straight.items()
        if not (torch.equal(value, resumed[key]) if isinstance(value, torch.Tensor) else value == resumed[key])
    ]  # fmt: skip
    assert different == []


@pytest.mark.parametrize(
    "name, kind", [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero2", "DEEPSPEED"), ("zero3", "DEEPSPEED")]
)
def test_shipped_configurations_are_accelerates(name, kind):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # refuses unknown keys
    assert config.distributed_type == kind and config.mixed_precision == "no"
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("FSDP", {"cuda_graph": True}, "`cuda_graph` cannot capture a step over weights sharded by FSDP"),
        ("DEEPSPEED", {"cuda_graph": True}, "`cuda_graph` cannot capture a step over weights sharded by DeepSpeed"),
        ("FSDP", {"lora": {"transformer": {"rank": 2}}}, "`lora` adapters are not sharded by FSDP"),
        ("FSDP", {"optimizer": "muon"}, "The optimizer 'muon' needs whole weights, FSDP shards them"),
        ("DEEPSPEED", {}, "ZeRO-3 cannot be averaged: set `ema_decay: 0`"),
        ("DEEPSPEED", {"ema_decay": 0.0, "ema_profiles": [0.1]}, "ZeRO-3 cannot be averaged"),
    ],
)
def test_what_sharding_cannot_do_is_refused(make_config, kind, changes, message):
    accelerator = SimpleNamespace(
        distributed_type=DistributedType(kind),
        is_fsdp2=True,
        deepspeed_plugin=SimpleNamespace(zero_stage=3, zero3_init_flag=False),
    )
    with pytest.raises(ValueError, match=message):
        check_sharding(make_config(**changes), accelerator)
    check_sharding(make_config(ema_decay=0.0), accelerator)
    check_sharding(make_config(**changes), SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
    if kind == "DEEPSPEED":
        accelerator.deepspeed_plugin.zero3_init_flag = True
        with pytest.raises(ValueError, match="`zero3_init_flag: true` cannot build"):
            check_sharding(make_config(ema_decay=0.0), accelerator)


def test_fsdp1_is_refused(make_config):
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(ValueError, match="set `fsdp_version: 2`"):
        check_sharding(make_config(), accelerator)
