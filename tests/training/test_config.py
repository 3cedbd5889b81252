import copy
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

from vimi_diffusers.training.arguments import read_docstring
from vimi_diffusers.training.config import TrainingConfig, changed_arguments


CONFIGS = Path(__file__).parents[2] / "training_scripts/configs"
REQUIRED = ["--output_dir", "out", "--train_data_dir", "world"]
MODEL = ["--model", "{vocab_size: 300}"]


def write(folder, **values):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["--config", str(path)]


def test_arguments_win_over_the_file(tmp_path):
    file = write(
        tmp_path, output_dir="a", train_data_dir="world", model={"vocab_size": 300}, max_train_steps=7, seed=3
    )
    config = TrainingConfig.from_args([*file, "--max_train_steps", "9", "--output_dir", "b"])
    assert (config.output_dir, config.max_train_steps, config.seed) == ("b", 9, 3)
    assert config.model == {"vocab_size": 300} and config.train_batch_size == 128


def test_structured_values_on_the_command_line():
    config = TrainingConfig.from_args(
        [*REQUIRED, *MODEL, "--task_weights", "{subject: 0.4, prediction: 0.6}", "--compile", "true",
         "--report_to", "null", "--checkpoints_total_limit", "2"]
    )  # fmt: skip
    assert config.task_weights == {"subject": 0.4, "prediction": 0.6}
    assert config.compile is True and config.report_to is None and config.checkpoints_total_limit == 2


@pytest.mark.parametrize("text, value", [("5e-4", 5e-4), ("1", 1.0), ("0.25", 0.25), ("6.0e-4", 6e-4)])
def test_numbers_that_yaml_misreads(tmp_path, text, value):
    (tmp_path / "run.yaml").write_text(f"learning_rate: {text}")
    for arguments in (["--config", str(tmp_path / "run.yaml")], ["--learning_rate", text]):
        config = TrainingConfig.from_args([*REQUIRED, *MODEL, *arguments])
        assert config.learning_rate == value and isinstance(config.learning_rate, float)


def test_a_bare_no_is_the_precision_and_not_false(tmp_path):
    (tmp_path / "run.yaml").write_text("mixed_precision: no")
    for arguments in (["--config", str(tmp_path / "run.yaml")], ["--mixed_precision", "no"]):
        assert TrainingConfig.from_args([*REQUIRED, *MODEL, *arguments]).mixed_precision == "no"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"learning_rat": 1e-3}, r"Unknown keys in .*run.yaml: learning_rat\."),
        ({"learning_rate": "fast"}, "`learning_rate` must be of type float, got 'fast'"),
        ({"learning_rate": True}, "`learning_rate` must be of type float, got True"),
        ({"max_train_steps": 2.5}, "`max_train_steps` must be of type int, got 2.5"),
        ({"max_train_steps": True}, "`max_train_steps` must be of type int, got True"),
        ({"compile": "maybe"}, "`compile` must be of type bool, got 'maybe'"),
        ({"output_dir": 5}, "`output_dir` must be of type str, got 5"),
        ({"task_weights": ["subject"]}, r"`task_weights` must be of type dict\[str, float\], got \['subject'\]"),
        ({"model": "large"}, r"`model` must be of type dict\[str, Any\], got 'large'"),
        ({"checkpoints_total_limit": "few"}, "`checkpoints_total_limit` must be of type int or null, got 'few'"),
        ({"task_weights": {"t2v": 1.0}}, r"Unknown tasks in `task_weights`: \['t2v'\]; known are"),
        ({"loss_weighting": "min-snr"}, "must be 'snap' or 'uncertainty', got 'min-snr'"),
        ({"max_train_steps": 0}, "`max_train_steps` must be at least 1, got 0"),
        ({"train_batch_size": -4}, "`train_batch_size` must be at least 1, got -4"),
        ({"model": {}}, "there is nothing to train"),
        ({"task_weights": {"subject": "much"}}, r"`task_weights` must be of type dict\[str, float\], got"),
        ({"task_weights": {"subject": -1, "prediction": 2}}, "`task_weights` must not be negative and not all 0"),
        ({"task_weights": {"subject": 0}}, "`task_weights` must not be negative and not all 0"),
        ({"dataset_name": "org/videos"}, "Give one of `train_data_dir` and `dataset_name`"),
        ({"video_buckets": ["16x64x64"], "num_images": 0}, "`num_images` must be at least 1, got 0"),
        ({"video_buckets": ["16x64"]}, "`video_buckets` must be like '16x64x64@5.333' .* got '16x64'"),
        ({"video_buckets": ["1x64x64@8"]}, "for images, '1x64x64'; got '1x64x64@8'"),
        ({"video_buckets": "16x64x64"}, r"must be of type list\[str\] or null, got '16x64x64'"),
        ({"video_buckets": [16]}, r"must be of type list\[str\] or null, got \[16\]"),
        ({"max_context": 3}, "`max_context` 3 is over the 2 image slots of `num_images`"),
        ({"condition_dropout": 1.5}, r"`condition_dropout` must be in \[0, 1\], got 1.5"),
        ({"condition_dropout": 0.6, "image_dropout": 0.6}, "their sum is over 1"),
        ({"condition_cache_dir": "cache"}, "`condition_cache_dir` needs `freeze_conditioner`"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1, got 0"),
        ({"optimizer": "sgd"}, "`optimizer` must be 'adamw', 'adamw8bit', 'lamb' or 'muon', got 'sgd'"),
        ({"ema_decay": 1.0}, r"`ema_decay` must be in \[0, 1\), got 1.0"),
        ({"ema_profiles": [0.05, 0.4]}, "`ema_profiles` are relative widths over 0 and up to 0.28, got 0.4"),
        ({"ema_snapshot_steps": 5}, "`ema_snapshot_steps` takes snapshots of `ema_profiles`"),
        ({"checkpoints_total_limit": 0}, "`checkpoints_total_limit` must be at least 1, got 0"),
        ({"cuda_graph": True, "optimizer": "lamb"}, "`cuda_graph` only captures a step with `optimizer` 'adamw'"),
        ({"cuda_graph": True, "gradient_accumulation_steps": 2}, "with `gradient_accumulation_steps` 1: change"),
        ({"cuda_graph": True, "video_buckets": ["1x8x8", "4x8x8@4"]}, "`cuda_graph` needs batches of one shape"),
        ({"lora": {"vae": {"rank": 4}}}, "`lora` must have a section for some of transformer, text_encoder"),
        ({"lora": {"transformer": {"ranks": 4}}}, "`lora.transformer` takes rank, alpha, dropout, target_modules"),
        ({"lora": {"text_encoder": {}}, "freeze_conditioner": True}, "`freeze_conditioner` excludes a `text_encoder`"),
        ({"allow_changed": ["learning_rat"]}, "`allow_changed` names what is no argument: learning_rat"),
        ({"allow_changed": ["optimizer"]}, "`optimizer` cannot change on resume"),
    ],
)
def test_wrong_values_are_refused(tmp_path, values, message):
    base = {"output_dir": "out", "train_data_dir": "world", "model": {"vocab_size": 300}}
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_args(write(tmp_path, **{**base, **values}))


def test_lists_and_switches_are_written_as_in_other_scripts():
    config = TrainingConfig.from_args(
        [*REQUIRED, *MODEL, "--video_buckets", "16x64x64@5.333", "1x64x64", "--gradient_checkpointing",
         "--validation_prompts", "a fox: it runs", "--ema_profiles", "0.05", "1e-1", "--allow_changed", "[seed]",
         "--output_dir", "2026-01-31", "--tracker_project_name", "7"]
    )  # fmt: skip
    assert config.video_buckets == ["16x64x64@5.333", "1x64x64"] and config.gradient_checkpointing is True
    assert config.validation_prompts == ["a fox: it runs"] and config.ema_profiles == [0.05, 0.1]
    assert config.allow_changed == ["seed"] and config.output_dir == "2026-01-31"
    assert config.tracker_project_name == "7"  # a name, whatever it looks like
    assert TrainingConfig.from_args([*REQUIRED, *MODEL, "--video_buckets", "null"]).video_buckets is None


def test_every_argument_is_documented_with_its_type_and_default():
    groups = read_docstring(TrainingConfig)
    documented = [name for entries in groups.values() for name in entries]
    assert documented == [item.name for item in dataclasses.fields(TrainingConfig)]
    doc = inspect.getdoc(TrainingConfig)
    for item in dataclasses.fields(TrainingConfig):
        pattern = rf"^    {item.name} \(`(.*?)`(?:, \*optional\*(?:, defaults to `(.*?)`)?)?\):"
        kind, default = re.search(pattern, doc, re.MULTILINE).groups()
        simple = item.type in (str, int, float, bool)
        expected = item.type.__name__ if simple else str(item.type).replace("typing.", "").removesuffix(" | None")
        assert kind == expected, item.name
        if default is not None:
            assert default in (str(item.default), repr(item.default).replace("'", '"')) or (
                float(default) == item.default
            ), item.name


def test_help_is_grouped_and_says_what_each_argument_does(capsys):
    with pytest.raises(SystemExit):
        TrainingConfig.from_args(["--help"], "Stage 1.")
    text = capsys.readouterr().out
    headings = ["Model:", "Data:", "Optimisation:", "Speed:", "Logging and validation:", "Checkpoints:"]
    assert [line for line in text.splitlines() if line in headings] == headings
    words = " ".join(text.split())
    assert "Stage 1." in words and "--ema_decay VALUE Decay of the exponential moving average" in words
    assert "--gradient_accumulation_steps VALUE Batches whose gradients are averaged" in words
    assert "--compile [true|false] Compile the loss" in words and "Default: 5e-4" not in words
    for item in dataclasses.fields(TrainingConfig):
        assert re.search(rf"--{item.name}\b", text)


def test_what_matters_on_resume():
    base = dataclasses.asdict(TrainingConfig("out", train_data_dir="world", model={"transformer": {"num_layers": 2}}))
    assert changed_arguments(base, base) == {}
    other = copy.deepcopy(base) | {"seed": 4, "output_dir": "elsewhere", "logging_steps": 3}
    other["model"]["transformer"]["num_layers"] = 3
    assert changed_arguments(base, other) == {"seed": (0, 4), "model.transformer.num_layers": (2, 3)}
    older = {name: value for name, value in base.items() if name != "optimizer"}  # written before there was a choice
    assert changed_arguments(older, base) == {}
    assert changed_arguments(older, base | {"optimizer": "lamb"}) == {"optimizer": ("adamw", "lamb")}
    assert changed_arguments(base | {"gone": 1}, base) == {"gone": (1, None)}
    for schedule, changed in (("cosine", {"max_train_steps": (10_000, 5)}), ("constant_with_warmup", {})):
        base["lr_scheduler"] = schedule
        assert changed_arguments(base, base | {"max_train_steps": 5}) == changed


def test_what_is_missing_or_unknown_on_the_command_line_is_named(capsys):
    with pytest.raises(SystemExit):
        TrainingConfig.from_args([*MODEL, "--output_dir", "out"])
    assert "missing --train_data_dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        TrainingConfig.from_args([*REQUIRED, *MODEL, "--learning_rat", "1"])
    assert "--learning_rat" in capsys.readouterr().err


def test_a_file_that_is_no_mapping_or_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="No configuration file at .*none.yaml"):
        TrainingConfig.from_args([*REQUIRED, "--config", str(tmp_path / "none.yaml")])
    (tmp_path / "list.yaml").write_text("- 1\n- 2")
    with pytest.raises(ValueError, match="must hold a mapping of arguments, not a list"):
        TrainingConfig.from_args([*REQUIRED, "--config", str(tmp_path / "list.yaml")])


@pytest.mark.parametrize("name", ["emoji_world_pretrain", "emoji_world_instruct"])
def test_shipped_configurations_are_valid(name):
    arguments = ["--config", str(CONFIGS / f"{name}.yaml"), "--pretrained_model_name_or_path", "folder"]
    config = TrainingConfig.from_args([*REQUIRED, *arguments])
    assert sum(config.task_weights.values()) == pytest.approx(1)
    given = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert {key: getattr(config, key) for key in given} == given
