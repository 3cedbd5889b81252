import json
from itertools import islice

import pytest
import torch

from vimi_diffusers.training import loop
from vimi_diffusers.training.checkpoints import list_checkpoints
from vimi_diffusers.training.loop import Trainer
from vimi_diffusers.vimi.pipeline_vimi import VIMIPipeline


MIX = {"text-to-video": 0.35, "subject": 0.4, "prediction": 0.25}


def tensors(state, path=""):
    """All tensors of a nested state, by path."""
    if isinstance(state, torch.Tensor):
        return {path: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {name: tensor for key, value in items for name, tensor in tensors(value, f"{path}/{key}").items()}


def assert_same_state(first, second):
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys() and len(first) > 100
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_run_writes_a_pipeline_of_the_averaged_weights(make_config, tmp_path):
    trainer = Trainer(make_config(max_train_steps=3, task_weights=MIX))
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    folder = trainer.run()
    assert folder == tmp_path / "run/pipeline" and trainer.global_step == 3
    moved = [name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])]
    assert {name.split(".")[0] for name in moved} == {"text_encoder", "transformer", "uncertainty"}

    pipe = VIMIPipeline.from_pretrained(folder)
    loaded = [*pipe.text_encoder.parameters(), *pipe.transformer.parameters()]
    assert all(map(torch.equal, loaded, trainer.ema.model.shadow_params))
    # the run goes on with its own weights, not the averaged ones
    assert not all(map(torch.equal, trainer.ema.parameters, trainer.ema.model.shadow_params))
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a fox", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).frames
    assert frames[0].shape == (4, 16, 16, 3) and frames.std() > 0.01
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.name != "logs") == ["pipeline"]


def test_a_second_stage_continues_from_the_first(make_config, tmp_path):
    first = Trainer(make_config(output_dir=str(tmp_path / "one"))).run()
    config = make_config(output_dir=str(tmp_path / "two"), pretrained_model_name_or_path=str(first), model={})
    trainer = Trainer(config)
    pipe = VIMIPipeline.from_pretrained(first)
    assert all(map(torch.equal, trainer.ema.parameters, [*pipe.text_encoder.parameters(),
                                                            *pipe.transformer.parameters()]))  # fmt: skip
    assert trainer.components["scheduler"].config.sigma_in == 2.0
    trainer.run()
    assert (tmp_path / "two/pipeline/model_index.json").is_file()


@pytest.mark.parametrize("workers", [0, 2])
def test_four_steps_equal_two_and_two_resumed(make_config, tmp_path, workers):
    settings = {
        "task_weights": MIX, "max_train_steps": 4, "lr_scheduler": "cosine", "dataloader_num_workers": workers,
        "validation_steps": 2, "num_validation_videos": 1,
    }  # fmt: skip
    straight = Trainer(make_config(output_dir=str(tmp_path / "straight"), **settings))
    straight.run()

    class CutOff(Exception):
        pass

    first = Trainer(make_config(checkpointing_steps=2, **settings))
    save = first.state.save

    def save_and_stop():
        save()
        raise CutOff

    first.state.save = save_and_stop
    with pytest.raises(CutOff):
        first.run()
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    torch.manual_seed(99)  # whatever else the next process did
    second = Trainer(make_config(resume_from_checkpoint="latest", **settings))
    assert second.global_step == 2
    assert_same_state(first.state.state_dict(), second.state.state_dict())
    second.run()
    assert second.global_step == 4
    assert_same_state(straight.state.state_dict(), second.state.state_dict())


def test_a_finished_run_is_not_trained_further(make_config):
    first = Trainer(make_config(checkpointing_steps=2))
    first.run()
    second = Trainer(make_config(resume_from_checkpoint="latest"))
    second.run()
    assert second.global_step == 2
    assert_same_state(first.state.state_dict(), second.state.state_dict())


def test_resuming_without_a_checkpoint_starts_afresh(make_config):
    trainer = Trainer(make_config(resume_from_checkpoint="latest"))
    assert trainer.global_step == 0
    assert_same_state(trainer.state.state_dict(), Trainer(make_config()).state.state_dict())


def test_only_the_newest_checkpoints_are_kept(make_config, tmp_path):
    Trainer(make_config(max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2)).run()
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-3", "checkpoint-4"]


def test_a_frozen_conditioner_stays_as_it_is(make_config):
    trainer = Trainer(make_config(freeze_conditioner=True))
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.run()
    for name, weight in trainer.model.named_parameters():
        if name.startswith("text_encoder."):
            assert torch.equal(weight, before[name])
    assert not torch.equal(trainer.model.transformer.proj_out.weight, before["transformer.proj_out.weight"])


def test_adapters_train_alone_and_load_into_the_pipeline(make_config, tmp_path):
    base = Trainer(make_config(output_dir=str(tmp_path / "base"))).run()
    lora = {"transformer": {"rank": 2}, "text_encoder": {"rank": 3, "alpha": 6}}
    settings = {"pretrained_model_name_or_path": str(base), "model": {}, "lora": lora, "max_train_steps": 4}
    trainer = Trainer(make_config(checkpointing_steps=2, **settings))
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    folder = trainer.run()
    assert folder == tmp_path / "run/lora" and not (tmp_path / "run/pipeline").exists()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    adapters = {name for name in before if ".lora_" in name}
    assert {name for name in moved if not name.startswith("uncertainty")} == adapters
    pipe = VIMIPipeline.from_pretrained(base)
    pipe.load_lora_weights(folder)
    loaded = dict(pipe.transformer.named_parameters())
    with trainer.ema.applied():
        for name, weight in trainer.model.transformer.named_parameters():
            assert torch.equal(loaded[name.replace(".default.", ".default_0.")], weight)

    cut = {**settings, "output_dir": str(tmp_path / "cut")}
    resumed = Trainer(make_config(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"), **cut))
    resumed.run()
    assert_same_state(trainer.state.state_dict(), resumed.state.state_dict())


def test_gradient_checkpointing_changes_no_step(make_config, tmp_path):
    weights = []
    for name in ("plain", "checkpointed"):
        config = make_config(output_dir=str(tmp_path / name), gradient_checkpointing=name == "checkpointed")
        trainer = Trainer(config)
        assert trainer.model.transformer.is_gradient_checkpointing == config.gradient_checkpointing
        trainer.run()
        weights.append([*trainer.model.parameters()])
    for plain, checkpointed in zip(*weights):
        torch.testing.assert_close(plain, checkpointed)


def test_sample_videos_at_intervals(make_config, tmp_path):
    settings = {"validation_steps": 2, "max_train_steps": 2, "num_validation_videos": 2}
    Trainer(make_config(validation_prompts=["a fox", "a cup", "a cat"], **settings)).run()
    names = {path.name for path in (tmp_path / "run/samples/step-2").iterdir()}
    assert names == {"00.png", "00.mp4", "01.png", "01.mp4"}


@pytest.mark.parametrize("batch_size", [1, 6])
def test_any_batch_size_trains_and_logs(make_config, batch_size):
    trainer = Trainer(make_config(train_batch_size=batch_size, max_train_steps=1))
    logged = {}
    trainer.accelerator.log = lambda values, step: logged.update({step: values})
    trainer.run()
    expected = {"error", "loss", "grad_norm", "skipped_steps", "lr", "steps_per_s", "clips_per_s", "eta_s"}
    assert logged[1].keys() == expected | {f"error_sigma_q{i}" for i in (1, 2, 3, 4)}
    assert logged[1].pop("skipped_steps") == 0
    assert all(value > 0 for name, value in logged[1].items() if name not in ("lr", "eta_s"))


def test_a_diverged_run_stops_with_a_word(make_config):
    trainer = Trainer(make_config(learning_rate=1e30, lr_warmup_steps=0, max_train_steps=4))
    with pytest.raises(FloatingPointError, match=r"diverged: \d+ of the \d+ steps"):
        trainer.run()


def test_batches_are_a_function_of_the_step(make_config):
    trainer = Trainer(make_config(task_weights=MIX))
    straight = list(islice(trainer.data.batches(), 4))
    late = list(islice(trainer.data.batches(start_step=2), 2))
    for batch, again in zip(straight[2:], late):
        assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert not torch.equal(straight[0]["video"], straight[1]["video"])
    assert straight[0]["video"].shape == (4, 3, 4, 16, 16) and straight[0]["pixel_values"].shape == (8, 3, 16, 16)
    state = torch.get_rng_state()
    next(iter(trainer.data.batches()))
    assert torch.equal(torch.get_rng_state(), state)  # loading draws nothing from the noise's stream


def test_held_out_words_do_not_train_the_tokenizer(make_config):
    texts = " ".join(Trainer(make_config()).data.texts()).lower()
    assert "fox" in texts and "tiger" not in texts and "quay" not in texts


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"max_sequence_length": 4096}, ValueError, "`max_sequence_length` 4096 is over the model's 1024 positions"),
        ({"model": {"transformr": {}}}, ValueError, "Unknown keys in `model`: transformr"),
        ({"train_data_dir": "/none"}, FileNotFoundError, "/none"),
        ({"resume_from_checkpoint": "/none"}, FileNotFoundError, "No checkpoint in /none"),
        ({"cuda_graph": True}, ValueError, "`cuda_graph` needs .*GPU"),
        ({"report_to": "tensorbord"}, ValueError, "`report_to` must be one of .*tensorboard.*, got 'tensorbord'"),
        ({"report_to": "swanlab"}, ValueError, "`report_to` 'swanlab' is not installed"),
        ({"model": {"transformer": {"layers": 2}}}, ValueError, r"Unknown keys in `model.transformer`: layers; known"),
        ({"model": {"conditioner": {"size": 2}}}, ValueError, r"Unknown keys in `model.conditioner`: size; known"),
        ({"model": {"scheduler": 5}}, ValueError, "`model.scheduler` must be a mapping of arguments, got 5"),
        ({"condition_dropout": 0.1}, ValueError, "Emoji world draws its own .*: leave `condition_dropout` out"),
        ({"video_buckets": ["1x16x16"]}, ValueError, "Emoji world draws its own .*: leave `video_buckets` out"),
        ({"max_sequence_length": 8}, ValueError, "`max_length` is 8, but 2 images take 8 tokens"),
    ],
)
def test_wrong_runs_are_refused_before_any_step(make_config, change, error, message, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "0")
    with pytest.raises(error, match=message):
        Trainer(make_config(**change))


def test_videos_that_are_not_square_are_refused(make_config):
    model = make_config().model
    wide = {**model, "transformer": {**model["transformer"], "width": 32}}
    with pytest.raises(ValueError, match="square videos, the model 16x32"):
        Trainer(make_config(model=wide))


def test_entry_of_the_scripts(make_config, tmp_path, monkeypatch, capsys):
    config = make_config(max_train_steps=1)
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({key: getattr(config, key) for key in vars(config)}))  # JSON is YAML
    monkeypatch.setattr("sys.argv", ["train_pretrain.py", "--config", str(path), "--max_train_steps", "2"])
    loop.main("Stage 1")
    assert capsys.readouterr().out.strip().endswith("run/pipeline")
