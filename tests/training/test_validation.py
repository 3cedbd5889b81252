import pytest
import torch

from vimi_diffusers.prompting import DEFAULT_INSTRUCTIONS
from vimi_diffusers.training.data import without_images
from vimi_diffusers.training.loop import Trainer
from vimi_diffusers.training.validation import HeldOutLoss, held_out_errors


TASKS = ("text-to-video", "subject", "prediction")


def measure(trainer):
    return held_out_errors(trainer.model, trainer.data.held_out(num_samples=6, batch_size=4))


@pytest.fixture
def trainer(make_config):
    return Trainer(make_config(task_weights=dict.fromkeys(TASKS, 1.0)))


def test_the_control_has_the_same_video_and_words_without_images(trainer):
    for task in TASKS:
        dataset = trainer.data.split("val_concept", {task: 1.0}, length=20, canonical=True)
        for i in range(20):
            sample, control = dataset[i], without_images(dataset[i])
            assert control.video == sample.video and control.concept == sample.concept
            assert sample.context and control.context == ()
            text = control.text("<image>")
            assert text == f"{DEFAULT_INSTRUCTIONS['text-only']} {sample.caption}" and "<image>" not in text
            noun = trainer.data.index.concepts[sample.concept].phrase
            assert noun[1:] in text  # the words say what the images showed


def test_it_measures_held_out_concepts_only(trainer):
    held_out = HeldOutLoss(trainer.data.renderer, trainer.data.collator, TASKS, num_samples=6, batch_size=4)
    assert held_out.samples.keys() == set(TASKS)
    for samples in held_out.samples.values():
        assert len(samples) == 6
        assert {trainer.data.index.concepts[sample.concept].split for sample in samples} == {"held_out"}


def test_it_is_repeatable_and_touches_nothing(trainer):
    state = torch.get_rng_state()
    first, second = measure(trainer), measure(trainer)
    assert first == second
    assert first.keys() == {f"held_out/{task}{end}" for task in TASKS for end in ("", "_without_images")}
    assert torch.equal(torch.get_rng_state(), state) and trainer.model.training
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_model_at_zero_has_the_energy_of_the_target_with_and_without_images(trainer):
    """F = 0 looks at no image: both errors are equal, and about 1 since the target has about unit variance."""
    results = measure(trainer)
    for task in TASKS:
        assert results[f"held_out/{task}"] == pytest.approx(results[f"held_out/{task}_without_images"])
        assert 0.3 < results[f"held_out/{task}"] < 1.5


def test_a_model_that_looks_at_images_shows_it(trainer):
    """The condition reaches the output, so that images change the error."""
    torch.nn.init.normal_(trainer.model.transformer.proj_out.weight, std=0.3)
    results = measure(trainer)
    for task in TASKS:
        assert results[f"held_out/{task}"] != results[f"held_out/{task}_without_images"]


def test_the_run_logs_it_with_the_averaged_weights(make_config):
    trainer = Trainer(make_config(max_train_steps=2, validation_steps=2, logging_steps=5))
    logged = {}
    trainer.accelerator.log = lambda values, step: logged.update({step: values})
    trainer.run()
    with trainer.ema.applied():
        expected = measure(trainer)
    assert logged == {2: expected}
    assert expected != measure(trainer)
