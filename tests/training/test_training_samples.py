import sys
from contextlib import nullcontext
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from vimi_diffusers.training import samples
from vimi_diffusers.training.loop import Trainer
from vimi_diffusers.training.objective import VIMITrainingModel
from vimi_diffusers.training.samples import SampleLogger, held_out_requests, prompt_requests
from vimi_diffusers.vimi.tiny import build_tiny_components


PROMPTS = ["a red ball", "a blue cube"]


def accelerator(**changes):
    settings = {
        "is_main_process": True, "device": torch.device("cpu"), "trackers": [], "autocast": nullcontext,
        "distributed_type": DistributedType.NO,
    }  # fmt: skip
    return SimpleNamespace(**{**settings, **changes})


@pytest.fixture
def parts():
    """A model with dropout that trains, and its processor."""
    tiny = build_tiny_components()
    model = VIMITrainingModel(tiny["text_encoder"], tiny["transformer"], tiny["scheduler"], "snap").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return model, tiny["text_processor"]


def make(parts, folder, requests=None, **options):
    model, processor = parts
    options = {"accelerator": accelerator(), "num_inference_steps": 2, **options}
    return SampleLogger(
        model, processor, output_dir=folder, requests=requests or prompt_requests(PROMPTS, 4), **options
    )


def held_out_batch(processor, batch_size=2, slots=2, **changes):
    """Two prompts with an image each and an empty slot, as emoji world lays them out."""
    texts = ["a red <image> ball", "a blue <image> cube"][:batch_size]
    tokens = 4
    rows = [processor.tokenizer(text.replace("<image>", "<image>" * tokens)).input_ids for text in texts]
    length = max(map(len, rows)) + tokens + 2
    image = processor.image_token_id
    ids = [row + [processor.tokenizer.pad_token_id] * (length - len(row) - tokens) + [image] * tokens for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(batch_size * slots, 3, 16, 16, generator=generator) * 2 - 1
    pixels[1::slots] = 1.0
    batch = {
        "video": torch.rand(batch_size, 3, 4, 16, 16, generator=generator) * 2 - 1,
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "pixel_values": pixels,
        "fps": torch.full((batch_size,), 8.0),
    }
    return {**batch, **changes}


# ------------------------------------------------------------------ files
def test_videos_and_strips_are_written(parts, tmp_path):
    folder = make(parts, tmp_path)(30)
    assert folder == tmp_path / "samples/step-30"
    assert sorted(path.name for path in folder.iterdir()) == ["00.mp4", "00.png", "01.mp4", "01.png"]
    with av.open(str(folder / "00.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 4 and frames[0].shape == (256, 256, 3)  # 16 pixels, enlarged for viewing
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-30"]


def test_the_same_noise_each_time_and_only_weights_make_a_difference(parts, tmp_path):
    logger, model = make(parts, tmp_path), parts[0]
    first = (logger(1) / "01.png").read_bytes()
    torch.manual_seed(17)
    assert (logger(2) / "01.png").read_bytes() == first
    with torch.no_grad():
        model.transformer.proj_out.bias += 1.0
    assert (logger(3) / "01.png").read_bytes() != first
    again = (logger(3) / "01.png").read_bytes()  # a resumed run writes over the step that it had reached
    assert again == (tmp_path / "samples/step-3/01.png").read_bytes()


def test_a_folder_appears_whole_or_not_at_all(parts, tmp_path, monkeypatch):
    logger = make(parts, tmp_path)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(samples, "write_video", fail)
    with pytest.raises(OSError, match="No space"):
        logger(7)
    assert not (tmp_path / "samples/step-7").exists()
    monkeypatch.undo()
    logger(7)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-7"]  # what was left behind is gone


def test_only_the_main_process_works(parts, tmp_path):
    calls = []
    parts[0].transformer.register_forward_hook(lambda *args: calls.append(1))
    assert make(parts, tmp_path, accelerator=accelerator(is_main_process=False))(1) is None and not calls
    sharded = accelerator(is_main_process=False, distributed_type=DistributedType.FSDP)
    assert make(parts, tmp_path, accelerator=sharded)(1) is None and calls  # it has a part of the weights
    assert not (tmp_path / "samples").exists()


def test_no_requests_no_files(parts, tmp_path):
    model, processor = parts
    assert SampleLogger(model, processor, accelerator(), tmp_path, [])(1) is None and not list(tmp_path.iterdir())


# ------------------------------------------------------------------ the run is as it would be without
def test_training_with_and_without_samples_gives_the_same_weights(tmp_path):
    weights = {}
    for every in (0, 1):
        tiny = build_tiny_components()
        model = VIMITrainingModel(tiny["text_encoder"], tiny["transformer"], tiny["scheduler"], "snap").train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        batch = held_out_batch(tiny["text_processor"])
        logger = make((model, tiny["text_processor"]), tmp_path)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model.text_encoder.mllm.eval()  # a part that is not in training stays so
        torch.manual_seed(0)
        for step in range(3):
            sigmas = model.scheduler.sample_sigmas(2)
            loss, _ = model(noise=torch.randn_like(batch["video"]), sigmas=sigmas, **batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if every:
                logger(step)
        assert model.training and model.transformer.training and not model.text_encoder.mllm.training
        weights[every] = [torch.rand(1), *model.parameters()]
    assert all(map(torch.equal, *weights.values()))


def test_a_sampler_leaves_the_scheduler_alone(parts, tmp_path):
    before = list(parts[0].scheduler.sigmas)
    make(parts, tmp_path)(1)
    assert parts[0].scheduler.sigmas == before and parts[0].scheduler.step_index is None


def test_in_a_run(make_config, tmp_path):
    """With and without sample videos a run ends with the same weights."""
    trainers = {}
    for number in (0, 3):
        config = make_config(
            output_dir=str(tmp_path / str(number)), max_train_steps=3,
            validation_steps=2, num_validation_videos=number,
            task_weights={"text-to-video": 0.5, "subject": 0.5}, report_to="tensorboard", ema_decay=0.5,
        )  # fmt: skip
        trainers[number] = Trainer(config)
        trainers[number].run()
    assert all(map(torch.equal, *(trainer.model.parameters() for trainer in trainers.values())))
    assert not (tmp_path / "0/samples").exists()
    folder = tmp_path / "3/samples"
    assert [path.name for path in folder.glob("step-2/*.png")] and len(list(folder.glob("step-2/*.mp4"))) == 3


# ------------------------------------------------------------------ requests
def test_held_out_samples_of_all_names_in_turn(parts):
    processor = parts[1]
    one, two = held_out_batch(processor), held_out_batch(processor, batch_size=1)
    named = [("subject", one), ("subject_without_images", two), ("subject", two), ("prediction", two)]
    requests = held_out_requests(iter(named), processor, 4)
    assert [(request.batch is not None, request.row) for request in requests] == [(True, 0), (True, 0), (True, 1)]
    assert [request.title for request in requests] == [
        "a red <image> ball",
        "a red <image> ball",
        "a blue <image> cube",
    ]
    assert requests[0].call == {"height": 16, "width": 16, "num_frames": 4, "fps": 8.0}
    ((caption, image),) = requests[2].references  # without the empty slot
    expected = ((one["pixel_values"][2] + 1) / 2 * 255).round().byte().permute(1, 2, 0).numpy()
    assert caption == "" and np.array_equal(np.asarray(image), expected)
    assert len(held_out_requests(iter(named), processor, 2)) == 2


def test_a_held_out_sample_is_made_from_its_words_and_images(parts, tmp_path):
    model, processor = parts
    batch, seen = held_out_batch(processor), []
    model.transformer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    logger = make(parts, tmp_path, held_out_requests(iter([("subject", batch)]), processor, 2))
    logger(1)
    model.eval()
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        embeds = model.text_encoder(**inputs)
    last = seen[-1]["encoder_hidden_states"]
    length = int(batch["attention_mask"][1].sum())
    torch.testing.assert_close(last[-1:, :length], embeds[1:2, :length])
    assert seen[-1]["fps"].flatten()[0] == 8.0
    strip = Image.open(tmp_path / "samples/step-1/01.png")
    assert strip.width > 192 + 4 * 128  # the reference stands beside the frames


def test_patches_show_no_pictures_and_an_image_is_no_video(parts, tmp_path):
    model, processor = parts
    batch = held_out_batch(processor)
    patches = {**batch, "pixel_values": torch.zeros(32, 48)}  # Qwen-VL's: no pictures to show
    assert held_out_requests(iter([("subject", patches)]), processor, 1)[0].references == []
    still = {**batch, "video": batch["video"][:, :, :1], "fps": torch.full((2,), torch.inf)}
    (request,) = held_out_requests(iter([("text-to-video", still)]), processor, 1)
    assert "fps" not in request.call
    folder = make(parts, tmp_path, [request])(1)
    assert [path.name for path in folder.iterdir()] == ["00.png"]


# ------------------------------------------------------------------ trackers
def test_tensorboard_gets_pictures_of_frames(parts, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(samples, "_has_moviepy", lambda: False)
    writer = SummaryWriter(str(tmp_path / "logs"))
    tracker = SimpleNamespace(name="tensorboard", tracker=writer)
    warned = []
    monkeypatch.setattr(samples.logger, "warning_once", warned.append)
    make(parts, tmp_path, accelerator=accelerator(trackers=[tracker]))(5)
    writer.close()
    events = EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["samples/00", "samples/01"]
    entry = events.Images("samples/01")[0]
    strip = Image.open(tmp_path / "samples/step-5/01.png")
    assert entry.step == 5 and (entry.width, entry.height) == strip.size
    assert len(warned) == 1 and "moviepy<2" in warned[0]


def test_tensorboard_gets_videos_with_moviepy(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_has_moviepy", lambda: True)
    calls = {}
    writer = SimpleNamespace(
        add_image=lambda tag, *args, **kwargs: None,
        add_video=lambda tag, pixels, step, fps: calls.update({tag: (pixels, step, fps)}),
        flush=lambda: None,
    )
    tracker = SimpleNamespace(name="tensorboard", tracker=writer)
    make(parts, tmp_path, accelerator=accelerator(trackers=[tracker]))(5)
    pixels, step, fps = calls["samples/01/video"]
    assert pixels.shape == (1, 4, 3, 16, 16) and pixels.dtype == torch.uint8 and step == 5
    assert fps == pytest.approx(16 / 3)


def test_wandb_gets_both(parts, tmp_path, monkeypatch):
    logged = {}
    wandb = SimpleNamespace(
        Image=lambda path, caption: ("image", path, caption),
        Video=lambda path, caption, format: ("video", path, format),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = SimpleNamespace(log=lambda values, step: logged.update({step: values}))
    tracker = SimpleNamespace(name="wandb", tracker=run)
    folder = make(parts, tmp_path, accelerator=accelerator(trackers=[tracker]))(5)
    assert logged == {5: {
        f"samples/{name}{kind}": entry
        for name, prompt in zip(("00", "01"), PROMPTS)
        for kind, entry in (
            ("", ("image", str(folder / f"{name}.png"), prompt)),
            ("/video", ("video", str(folder / f"{name}.mp4"), "mp4")),
        )
    }}  # fmt: skip
