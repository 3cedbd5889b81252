import copy
from collections import Counter

import numpy as np
import pytest
import torch
from media_files import encode_image
from PIL import Image

from vimi_diffusers.data import BadSample, ContextPair, PromptSettings, Reference, VideoRecord
from vimi_diffusers.data.prompts import PromptEncoder, draw_prompt, plain_prompt
from vimi_diffusers.prompting import MultimodalPrompt
from vimi_diffusers.prompting.paraphrases import PARAPHRASES


FIRST = Image.new("RGB", (16, 16), "green")
RECORD = VideoRecord(
    b"",
    "A dog runs",
    references=(Reference(encode_image((8, 8)), "dog"),),
    context=tuple(ContextPair(encode_image((number, 4)), f"pair {number}") for number in (1, 2, 3)),
)
PLAIN = VideoRecord(b"", "A dog runs")
MIX = {"text-to-video": 0.5, "subject": 0.3, "prediction": 0.2}


def draw(count=400, record=RECORD, is_image=False, **settings):
    settings = PromptSettings(**{"task_weights": MIX, **settings})
    return [draw_prompt(record, is_image, FIRST, settings, np.random.default_rng([number])) for number in range(count)]


def test_tasks_are_mixed_by_their_weights_among_those_allowed():
    counts = Counter(prompt.task for prompt in draw(2000))
    assert {task: round(count / 2000, 1) for task, count in counts.items()} == {
        "text-to-video": 0.5, "subject": 0.3, "prediction": 0.2,
    }  # fmt: skip
    counts = Counter(prompt.task for prompt in draw(2000, record=PLAIN))
    assert counts["prediction"] / 2000 == pytest.approx(2 / 7, abs=0.04) and set(counts) == set(MIX) - {"subject"}
    assert {prompt.task for prompt in draw(record=PLAIN, is_image=True)} == {"text-to-video"}
    assert {prompt.task for prompt in draw(task_weights=None)} == {"subject"}
    one = VideoRecord(b"", "x", task="prediction")
    assert {prompt.task for prompt in draw(record=one)} == {"prediction"}


def test_what_each_task_shows():
    for prompt in draw(max_context=2):
        instruction = prompt.text
        if prompt.task == "subject":
            assert prompt.text.endswith(" A <image> runs") and [image.size for image in prompt.images] == [(8, 8)]
            instruction = prompt.text.removesuffix(" A <image> runs")
        elif prompt.task == "prediction":
            assert prompt.text.endswith(" A dog runs <image>") and prompt.images == [FIRST]
            instruction = prompt.text.removesuffix(" A dog runs <image>")
        key = prompt.task
        if key == "text-to-video":
            widths = [image.width for image in prompt.images]
            assert len(widths) <= 2 and widths == sorted(widths)  # best first
            pairs = " ".join(f"pair {width} <image>" for width in widths)
            tail = f" {pairs} A dog runs" if widths else " A dog runs"
            assert prompt.text.endswith(tail)
            instruction, key = prompt.text.removesuffix(tail), key if widths else "text-only"
        assert instruction in PARAPHRASES[key]
        assert prompt.words == "A dog runs"


def test_k_is_even_and_any_pairs_may_be_shown():
    prompts = draw(3000, task_weights={"text-to-video": 1}, max_context=2)
    counts = Counter(len(prompt.images) for prompt in prompts)
    assert all(counts[k] / 3000 == pytest.approx(1 / 3, abs=0.04) for k in (0, 1, 2))
    assert {prompt.images[0].width for prompt in prompts if len(prompt.images) == 1} == {1, 2, 3}
    assert max(len(prompt.images) for prompt in draw(task_weights={"text-to-video": 1}, max_context=9)) == 3
    assert not any(prompt.images for prompt in draw(task_weights={"text-to-video": 1}))


def test_instructions_vary_and_can_be_the_records_own():
    fixed = draw(200, record=PLAIN, task_weights={"text-to-video": 1}, num_paraphrases=1)
    assert {prompt.text for prompt in fixed} == {f"{PARAPHRASES['text-only'][0]} A dog runs"}
    prompts = draw(5000, record=PLAIN, task_weights={"text-to-video": 1})
    assert {prompt.text for prompt in prompts} == {f"{text} A dog runs" for text in PARAPHRASES["text-only"]}
    own = VideoRecord(b"", "A dog runs", instruction="Film it.")
    assert {prompt.text for prompt in draw(record=own, task_weights={"text-to-video": 1})} == {"Film it. A dog runs"}


def test_dropout_of_everything_and_of_images_alone():
    prompts = draw(4000, condition_dropout=0.2, image_dropout=0.5, max_context=2)
    empty = [prompt for prompt in prompts if not prompt.text]
    assert len(empty) / 4000 == pytest.approx(0.2, abs=0.03) and not any(prompt.images for prompt in empty)
    subjects = draw(4000, task_weights={"subject": 1}, condition_dropout=0.2, image_dropout=0.5)
    words = [prompt for prompt in subjects if prompt.text and not prompt.images]
    assert len(words) / 4000 == pytest.approx(0.8 * 0.5, abs=0.03)
    for prompt in words:  # as the pipeline lays out the words' branch
        assert prompt.text.removesuffix(" A dog runs") in PARAPHRASES["text-only"]
        assert prompt.task == "text-to-video"


def test_held_out_prompts_draw_nothing():
    prompt = plain_prompt(RECORD, "text-to-video", FIRST, max_context=2)
    assert prompt.text == (
        "Generate a video with the retrieved text-image pairs. pair 1 <image> pair 2 <image> A dog runs"
    )
    assert plain_prompt(RECORD, "subject", FIRST, 2).text == "Generate a video with the text and image. A <image> runs"
    bare = plain_prompt(RECORD, "subject", FIRST, 2, images=False)
    assert (bare.text, bare.images) == ("Generate a video with the text. A dog runs", [])


@pytest.mark.parametrize(
    "record, settings, reason",
    [
        (VideoRecord(b"", "dog", references=(Reference(b"x", "dog"),)), {"subject": 1}, "unreadable_image"),
        (VideoRecord(b"", "A [IMG] tag"), {"text-to-video": 1}, "bad_prompt"),
    ],
)
def test_prompts_that_cannot_be_made(record, settings, reason):
    with pytest.raises(BadSample) as caught:
        draw_prompt(record, False, FIRST, PromptSettings(settings), np.random.default_rng(0), image_token="[IMG]")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"task_weights": {"subject": 0.0}}, "task_weights"),
        ({"max_context": -1}, "max_context"),
        ({"condition_dropout": 1.5}, "condition_dropout"),
        ({"image_dropout": -0.1}, "image_dropout"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        PromptSettings(**settings)


class TestEncoder:
    """With every family of multimodal processors that can be built here."""

    @pytest.fixture(params=["llava", "idefics3"])
    def processor(self, request):
        import sys
        from pathlib import Path

        sys.path.append(str(Path(__file__).parents[1] / "vimi"))
        import mllm_families

        return mllm_families.processor(request.param)

    def prompts(self, processor):
        image = Image.new("RGB", (16, 16))
        token = processor.image_token
        return [
            MultimodalPrompt(f"a red ball {token} and {token} a big blue cube and a red ball", [image, image]),
            MultimodalPrompt(""),
            MultimodalPrompt("a blue cube"),
        ]

    def test_rows_have_one_length_and_equal_the_processors_own(self, processor):
        prompts = self.prompts(processor)
        batch = PromptEncoder(processor, 96)(prompts)
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 96)
        own = processor(text=[prompts[0].text], images=[prompts[0].images], return_tensors="pt")
        length = own["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][:1, :length], own["input_ids"])
        assert batch["attention_mask"].sum(1).tolist()[0] == length and batch["attention_mask"][1].sum() >= 1
        assert (batch["input_ids"][0, length:] == processor.tokenizer.pad_token_id).all()
        assert torch.equal(batch["pixel_values"].flatten(0, -4)[:2], own["pixel_values"].flatten(0, -4)[:2])
        assert "pixel_values" not in PromptEncoder(processor, 96)(prompts[1:])

    def test_words_are_cut_from_the_end_and_images_stay(self, processor):
        prompt = self.prompts(processor)[0]
        whole = PromptEncoder(processor, 999).length(prompt.text, prompt.images)
        cut = PromptEncoder(processor, whole - 3)
        batch = cut([prompt, MultimodalPrompt("a cube")])
        assert batch["input_ids"].shape == (2, whole - 3) and batch["attention_mask"][0].all()
        text = cut.cut(prompt.text, prompt.images)
        assert prompt.text.startswith(text) and text.count(processor.image_token) == 2 and text != prompt.text
        ids = PromptEncoder(processor, 999)([prompt])["input_ids"][0]
        image_id = processor.image_token_id
        assert (batch["input_ids"][0] == image_id).sum() == (ids == image_id).sum()
        with pytest.raises(BadSample, match="2 images alone take over 4 tokens"):
            PromptEncoder(processor, 4)([prompt])

    def test_chat_turns(self, processor):
        if processor.chat_template is None:
            with pytest.raises(ValueError, match="no chat template"):
                PromptEncoder(processor, 96, chat=True)([MultimodalPrompt("a cube")])
            return
        batch = PromptEncoder(processor, 96, chat=True)([MultimodalPrompt("a cube"), MultimodalPrompt("")])
        text = processor.tokenizer.decode(batch["input_ids"][0])
        assert "<|im_start|>User:a cube<end_of_utterance>" in text

    def test_a_tokenizer_that_cannot_pad(self, processor):
        processor = copy.deepcopy(processor)
        processor.tokenizer.pad_token = None
        with pytest.raises(ValueError, match="padding token"):
            PromptEncoder(processor, 96)
