import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[2]


def launch(script, *arguments, processes=1):
    """Runs a training script through `accelerate launch` on the CPU; returns what it printed last."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               str(ROOT / "training_scripts" / script), *map(str, arguments)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    return Path(result.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_both_stages_run_through_accelerate(make_config, tmp_path, processes):
    from vimi_diffusers import VIMIPipeline

    config = {name: value for name, value in vars(make_config()).items() if value is not None}
    one, two = tmp_path / "one", tmp_path / "two"
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump({**config, "output_dir": str(one)}))
    first = launch("train_pretrain.py", "--config", tmp_path / "pretrain.yaml", processes=processes)
    assert first == one / "pipeline"

    config |= {"output_dir": str(two), "task_weights": {"text-to-video": 0.35, "subject": 0.4, "prediction": 0.25}}
    del config["model"]
    (tmp_path / "instruct.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", tmp_path / "instruct.yaml", "--pretrained_model_name_or_path", first]
    second = launch("train_instruct.py", *arguments, "--checkpointing_steps", 1, processes=processes)
    assert second == two / "pipeline"
    assert sorted(path.name for path in two.iterdir() if path.name != "logs") == [
        "checkpoint-1", "checkpoint-2", "pipeline",
    ]  # fmt: skip
    pipe = VIMIPipeline.from_pretrained(second)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a fox", num_inference_steps=1).frames[0].shape == (4, 16, 16, 3)
