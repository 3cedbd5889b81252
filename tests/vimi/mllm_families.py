"""Tiny multimodal models of the families that the conditioner is tested with, and their inputs, without a download."""

from dataclasses import dataclass
from functools import cache

import torch
from transformers import (
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    SmolVLMConfig,
)

from vimi_diffusers.vimi.mllm_conditioner import MLLMConditioner, MLLMConditionerConfig
from vimi_diffusers.vimi.tiny import build_conditioner, build_text_processor, build_tokenizer


FAMILIES = ("llava", "idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl")
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    built = build_tokenizer(["a red ball and a blue cube", "You are a helpful assistant."], 320)
    if name in ("idefics3", "smolvlm"):
        rows = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
        marks = ["<|im_start|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *rows]
        built.add_tokens(marks, special_tokens=True)
    elif name != "llava":
        marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
        built = PreTrainedTokenizerFast(
            tokenizer_object=built.backend_tokenizer, pad_token="<pad>", eos_token="</s>", padding_side="right"
        )
        built.add_tokens(marks, special_tokens=True)
    return built


def qwen_image_processor(name: str) -> Qwen2VLImageProcessorPil:
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    return Qwen2VLImageProcessorPil(size=size, patch_size=4, merge_size=2, temporal_patch_size=2)


@cache
def processor(name: str):
    """The family's processor, where it can be built without torchvision."""
    if name == "llava":
        return build_text_processor(tokenizer(name), image_size=16, patch_size=8)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
    )
    return Idefics3Processor(images, tokenizer(name), image_seq_len=4, chat_template=IDEFICS_TEMPLATE)


def mllm_config(name: str) -> PreTrainedConfig:
    words = tokenizer(name)
    ids = {key: words.convert_tokens_to_ids(token) for key, token in {
        "image_token_id": "<image>" if name in ("llava", "idefics3", "smolvlm") else "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }.items()}  # fmt: skip
    text = {**TEXT, "vocab_size": len(words), "pad_token_id": words.pad_token_id}
    vision = {"hidden_size": 16, "intermediate_size": 32}
    if name in ("idefics3", "smolvlm"):
        vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
        kind = {"idefics3": Idefics3Config, "smolvlm": SmolVLMConfig}[name]
        return kind(
            text_config=LlamaConfig(**text).to_dict(),
            vision_config=vision,
            image_token_id=ids["image_token_id"],
            scale_factor=2,
        )
    vision |= {"depth": 2, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32, "temporal_patch_size": 2}
    if name == "qwen2_5_vl":
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        return Qwen2_5_VLConfig(text_config={**text, "rope_parameters": ROPE}, vision_config=vision, **ids)
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return Qwen3VLConfig(text_config={**text, "head_dim": 16, "rope_parameters": ROPE}, vision_config=vision, **ids)


def build(name: str, seed: int = 0, **options) -> MLLMConditioner:
    """A conditioner of random weights with 24 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "llava" and not options:
            return build_conditioner(
                processor(name), 24, vision_dim=16, vision_layers=1, text_dim=32, text_layers=2, head_dim=16
            )
        nested = build(name).config.mllm_config.to_dict() if name == "llava" else mllm_config(name)
        return MLLMConditioner(MLLMConditionerConfig(mllm_config=nested, output_dim=24, **options)).eval()


@dataclass
class Family:
    """One family: `encode` gives what its processor returns for texts with `image` where an image stands."""

    name: str

    @property
    def image(self) -> str:
        if self.name in ("llava", "idefics3", "smolvlm"):
            return "<image>"
        return "<|vision_start|><|image_pad|><|vision_end|>"

    def encode(self, texts: list[str], images: list[list], side: str = "right") -> dict[str, torch.Tensor]:
        texts = [text.replace("IMG", self.image) for text in texts]
        options = {"padding": True, "padding_side": side, "return_tensors": "pt"}
        if self.name in ("llava", "idefics3", "smolvlm"):
            return dict(processor(self.name)(text=texts, images=images if any(images) else None, **options))
        inputs, flat = {}, [image for own in images for image in own]
        if flat:
            inputs = dict(qwen_image_processor(self.name)(flat, return_tensors="pt"))
            counts = iter((inputs["image_grid_thw"].prod(-1) // 4).tolist())
            texts = [
                "".join(part + "<|image_pad|>" * next(counts) for part in parts[:-1]) + parts[-1]
                for parts in (text.split("<|image_pad|>") for text in texts)
            ]
        words = tokenizer(self.name)
        inputs |= dict(words(texts, return_token_type_ids=False, **options))
        pad = words.convert_tokens_to_ids("<|image_pad|>")
        return inputs | {"mm_token_type_ids": (inputs["input_ids"] == pad).int()}
