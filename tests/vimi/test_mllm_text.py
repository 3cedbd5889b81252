import copy

import pytest
from mllm_families import processor

from vimi_diffusers.vimi.mllm_text import chat_prefix_length, format_mllm_text


class QwenLike:
    image_token = "<|image_pad|>"
    chat_template = None


def test_text_without_chat_is_left_alone():
    assert format_mllm_text(processor("llava"), "A <image> in <image>") == "A <image> in <image>"


def test_qwen_gets_marks_around_each_image():
    formatted = format_mllm_text(QwenLike(), "<|image_pad|><|image_pad|> x")
    assert formatted == "<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|> x"


def test_the_empty_prompt_has_a_token():
    with_start = processor("llava")
    assert format_mllm_text(with_start, "") == ""  # its tokenizer adds one
    without = copy.deepcopy(processor("idefics3"))
    without.tokenizer.backend_tokenizer.post_processor = None
    assert without.tokenizer("")["input_ids"] == []
    assert format_mllm_text(without, "") == "</s>"
    assert len(without.tokenizer("</s>")["input_ids"]) == 1


def test_chat_template_surrounds_the_text():
    formatted = format_mllm_text(processor("idefics3"), "A <image> runs", chat=True)
    assert formatted == "<|im_start|>User:A <image> runs<end_of_utterance>\nAssistant:"


def test_prefix_length_counts_what_stands_before_the_text():
    made = processor("idefics3")
    length = chat_prefix_length(made)
    for text in ("Generate a video", "Generate"):
        ids = made.tokenizer(format_mllm_text(made, text, chat=True))["input_ids"]
        assert made.tokenizer.decode(ids[:length]).replace("<s>", "") == "<|im_start|>User:"
        assert made.tokenizer.decode(ids[length:]).startswith(text)


def test_processor_without_chat_template_is_refused():
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template"):
        chat_prefix_length(processor("llava"))


def test_template_that_drops_the_text_is_refused():
    made = copy.copy(processor("idefics3"))
    made.chat_template = "{% for message in messages %}{{ message['role'] }}{% endfor %}"
    with pytest.raises(ValueError, match="does not pass on the user's text"):
        format_mllm_text(made, "A fox", chat=True)
