import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vimi_diffusers.cli import main
from vimi_diffusers.evaluation.held_out import (
    HeldOutEvaluation,
    HeldOutSettings,
    evaluate_held_out,
    pipeline_inputs,
)
from vimi_diffusers.prompting import TASKS, lay_out_prompts
from vimi_diffusers.training.data import without_images
from vimi_diffusers.training.validation import HeldOutLoss


QUICK = HeldOutSettings(num_inference_steps=2, limit=2, batch_size=3)


@pytest.fixture
def evaluation(tiny_pipeline, index):
    return HeldOutEvaluation(tiny_pipeline, index, QUICK)


def test_the_pipeline_reads_what_the_samples_say(evaluation):
    samples = [sample for task in TASKS for sample in evaluation.samples(task, 2)]
    samples += [without_images(sample) for sample in samples]
    images = evaluation.render(samples)[1]
    prompts = lay_out_prompts(**pipeline_inputs(samples, images))
    assert [prompt.text for prompt in prompts] == [sample.text() for sample in samples]
    assert [len(prompt.images) for prompt in prompts] == [2, 2, 2, 2, 1, 1] + [0] * 6
    for prompt, own in zip(prompts, images, strict=True):
        assert all(np.array_equal(np.asarray(a), b) for a, b in zip(prompt.images, own, strict=True))


def test_samples_are_held_out_and_differ(evaluation, index):
    for task in TASKS:
        concepts = [sample.concept for sample in evaluation.samples(task, 2)]
        assert len(set(concepts)) == 2 and all(index.concepts[concept].split == "held_out" for concept in concepts)


def test_the_first_frame_is_that_of_the_true_clip(evaluation):
    samples = evaluation.samples("prediction", 2)
    videos, images = evaluation.render(samples)
    assert videos.shape == (2, 4, 16, 16, 3)
    for video, own in zip(videos, images):
        assert np.abs(video[0] - own[0] / 255).max() < 0.51 / 255 + 1e-6


def test_a_control_starts_from_the_noise_of_its_original(evaluation, monkeypatch):
    """A pipeline that returns its noise shows it; the batches are cut elsewhere for the controls."""

    def noise(generator, **kwargs):
        frames = np.stack([torch.randn(4, 16, 16, 3, generator=one).numpy() for one in generator])
        return type("Output", (), {"frames": frames})

    monkeypatch.setattr(evaluation, "pipe", noise)
    samples = evaluation.samples("subject", 2)
    videos = evaluation.generate([*samples, *map(without_images, samples)])
    assert np.array_equal(videos[:2], videos[2:]) and not np.array_equal(videos[0], videos[1])


def test_images_change_what_is_generated(evaluation):
    sample = evaluation.samples("subject", 1)[0]
    with_images, again, without = evaluation.generate([sample, sample, without_images(sample)])
    assert np.abs(with_images - again).max() < 1e-4 < np.abs(with_images - without).max()


class Recorder(torch.nn.Module):
    """Takes the place of the model under training: its error is the number of image tokens that it may read."""

    def __init__(self, scheduler, image_token_id):
        super().__init__()
        self.scheduler, self.image_token_id, self.calls = scheduler, image_token_id, []

    def forward(self, video, noise, sigmas, input_ids, attention_mask, **others):
        self.calls.append((video, noise, sigmas))
        return None, ((input_ids == self.image_token_id) & attention_mask.bool()).sum(1).float()


def test_the_loss_withholds_the_images_and_nothing_else(evaluation, tiny_pipeline, monkeypatch):
    processor = tiny_pipeline.text_processor
    recorder = Recorder(tiny_pipeline.scheduler, processor.image_token_id)
    monkeypatch.setattr("vimi_diffusers.evaluation.held_out.VIMITrainingModel", lambda *args: recorder)
    losses = evaluation.losses()
    tokens = (16 // processor.patch_size) ** 2
    assert losses.pop("samples_per_task") == 2
    assert losses == {
        task: {"with_images": images * tokens, "without_images": 0.0}
        for task, images in {"text-to-video": 2, "subject": 2, "prediction": 1}.items()
    }
    for original, control in zip(recorder.calls[::2], recorder.calls[1::2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(original, control))


def test_the_loss_does_not_depend_on_the_state_of_training(evaluation, tiny_pipeline):
    first = evaluation.losses()
    tiny_pipeline.transformer.train()
    torch.randn(7)
    assert evaluation.losses() == first and tiny_pipeline.transformer.training is False
    assert all(first[task]["with_images"] > 0 for task in TASKS)


@pytest.fixture(scope="module")
def evaluated(tiny_checkpoint, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    return out, evaluate_held_out(tiny_checkpoint, world, out, QUICK)


def test_the_command_writes_the_same_files_again_and_shows_them(evaluated, tiny_checkpoint, world, tmp_path, capsys):
    out, results = evaluated
    args = ["--world", world, "--model", tiny_checkpoint, "--out", tmp_path / "out", "--limit", 2, "--steps", 2]
    with pytest.raises(SystemExit) as exit_info:
        main(["evaluate", "held-out", "--device", "cpu", "--batch-size", "3", *map(str, args)])
    shown = capsys.readouterr().out
    assert not exit_info.value.code
    names = sorted(path.name for path in out.iterdir())
    assert names == ["held_out_prediction.png", "held_out_subject.png", "held_out_text_to_video.png", "results.json"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes()
    assert f"{results['held_out_loss']['subject']['with_images']:.4f}" in shown and "top 5 of 2" in shown


def test_results_hold_the_figures_and_name_the_weights(evaluated):
    out, results = evaluated
    assert json.loads((out / "results.json").read_text()) == results
    assert sorted(results["weights_sha256"]) == [
        "text_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    assert all(len(digest) == 64 for digest in results["weights_sha256"].values())
    assert results["colour_identification"]["chance"] == {"top_1": 0.5, "top_5": 1.0}
    assert len(set(results["concepts_in_pictures"])) == 2
    assert all(Image.open(out / name).format == "PNG" for name in results["pictures"].values())


def test_images_have_a_weight_of_their_own_and_controls_have_none(evaluation, tiny_pipeline, index, monkeypatch):
    samples = evaluation.samples("subject", 2)
    requests, calls = [*samples, *map(without_images, samples)], []
    together = HeldOutEvaluation(tiny_pipeline, index, dataclasses.replace(QUICK, image_guidance_scale=None))
    call = type(tiny_pipeline).__call__

    def spy(pipe, **arguments):
        calls.append([arguments.get(name) for name in ("guidance_scale", "image_guidance_scale")])
        return call(pipe, **arguments)

    monkeypatch.setattr(type(tiny_pipeline), "__call__", spy)
    videos, others = evaluation.generate(requests), together.generate(requests)
    assert calls == [[1.0, 4.0], [3.0, None], [3.0, None], [3.0, None]]
    assert np.abs(videos - others).max(axis=(1, 2, 3, 4))[:2].min() > 1e-3 and np.array_equal(videos[2:], others[2:])


def test_another_seed_gives_other_samples(evaluation, tiny_pipeline, index):
    other = HeldOutEvaluation(tiny_pipeline, index, dataclasses.replace(QUICK, seed=1))
    for task in TASKS:
        samples = [sample.video for sample in evaluation.samples(task, 2)]
        assert samples != [sample.video for sample in other.samples(task, 2)]


def test_bad_input_is_named(tiny_checkpoint, world, tmp_path, capsys, tiny_pipeline, index):
    with pytest.raises(ValueError, match="2 held-out concepts that move, 24 are needed"):
        evaluate_held_out(tiny_checkpoint, world, tmp_path, HeldOutSettings())
    with pytest.raises(FileNotFoundError, match="holds no pipeline"):
        evaluate_held_out(tmp_path / "nothing", world, tmp_path)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        HeldOutSettings(batch_size=0)
    tiny_pipeline.transformer.register_to_config(width=32)
    with pytest.raises(ValueError, match="square videos, this pipeline 16x32"):
        HeldOutEvaluation(tiny_pipeline, index, QUICK)
    with pytest.raises(SystemExit) as exit_info:
        main(["evaluate", "held-out", "--world", str(tmp_path), "--model", str(tiny_checkpoint), "--out", "unused"])
    assert exit_info.value.code == 1 and "is not an emoji world" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_loss_for_training_and_evaluation(evaluation):
    """The class takes any number of batches; their mean is over samples."""
    from vimi_diffusers.emoji_world.samples import Collator

    processor = evaluation.pipe.text_processor
    collator = Collator(processor.tokenizer, evaluation.index, processor.image_token_id, 4, 256)
    recorder = Recorder(evaluation.pipe.scheduler, processor.image_token_id)
    held_out = HeldOutLoss(evaluation.renderer, collator, ["prediction"], num_samples=5, batch_size=2)
    assert held_out(recorder) == {"held_out/prediction": 4.0, "held_out/prediction_without_images": 0.0}
    assert [len(video) for video, _, _ in recorder.calls] == [2, 2, 1] * 2
