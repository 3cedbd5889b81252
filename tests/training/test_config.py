from pathlib import Path

import pytest
import yaml

from vimi_diffusers.training.config import TrainingConfig


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
        ({"task_weights": ["subject"]}, r"`task_weights` must be of type dict, got \['subject'\]"),
        ({"model": "large"}, "`model` must be of type dict, got 'large'"),
        ({"checkpoints_total_limit": "few"}, "`checkpoints_total_limit` must be of type int or null, got 'few'"),
        ({"task_weights": {"t2v": 1.0}}, r"Unknown tasks in `task_weights`: \['t2v'\]; known are"),
        ({"loss_weighting": "min-snr"}, "must be 'snap' or 'uncertainty', got 'min-snr'"),
        ({"max_train_steps": 0}, "`max_train_steps` must be at least 1, got 0"),
        ({"train_batch_size": -4}, "`train_batch_size` must be at least 1, got -4"),
        ({"model": {}}, "there is nothing to train"),
    ],
)
def test_wrong_values_are_refused(tmp_path, values, message):
    base = {"output_dir": "out", "train_data_dir": "world", "model": {"vocab_size": 300}}
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_args(write(tmp_path, **{**base, **values}))


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
