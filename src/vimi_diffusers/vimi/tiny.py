# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Small components built without any download: the base of the embedded default, and of the tests."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .mllm_conditioner import MLLMConditioner, MLLMConditionerConfig
from .scheduling_edm_video import EDMVideoScheduler
from .transformer_vimi import VIMITransformer3DModel


SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
IMAGE_TOKEN = "<image>"


def build_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """
    Trains a byte-level BPE tokenizer.

    Args:
        texts (`Iterable[str]`): Training text.
        vocab_size (`int`, *optional*, defaults to `2048`): Upper bound of the vocabulary, special tokens included.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [*SPECIAL_TOKENS.values(), IMAGE_TOKEN]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(  # the empty prompt still has one token
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="right",
        **SPECIAL_TOKENS,
    )


def build_text_processor(
    tokenizer: PreTrainedTokenizerFast, image_size: int = 64, patch_size: int = 8
) -> LlavaProcessor:
    """A LLaVA processor for square images of `image_size` pixels, `(image_size / patch_size)**2` tokens each."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which the default strategy drops again
    )


def build_conditioner(
    processor: LlavaProcessor,
    output_dim: int = 256,
    vision_dim: int = 192,
    vision_layers: int = 4,
    text_dim: int = 256,
    text_layers: int = 4,
    head_dim: int = 64,
    max_position_embeddings: int = 1024,
) -> MLLMConditioner:
    """
    A LLaVA (CLIP vision tower, MLP projector, Llama) of random weights, wrapped as an [`MLLMConditioner`].

    Args:
        processor (`LlavaProcessor`): Decides vocabulary, image and patch size.
        output_dim (`int`, *optional*, defaults to `256`): Channels of C.
        vision_dim (`int`, *optional*, defaults to `192`): Width of the vision tower.
        vision_layers (`int`, *optional*, defaults to `4`): Layers of the vision tower.
        text_dim (`int`, *optional*, defaults to `256`): Width of the language model.
        text_layers (`int`, *optional*, defaults to `4`): Layers of the language model.
        head_dim (`int`, *optional*, defaults to `64`): Channels of a head in both.
        max_position_embeddings (`int`, *optional*, defaults to `1024`): Longest prompt in tokens, images included.
    """
    image_size = processor.image_processor.crop_size["height"]
    vision = CLIPVisionConfig(
        hidden_size=vision_dim,
        intermediate_size=4 * vision_dim,
        num_hidden_layers=vision_layers,
        num_attention_heads=max(vision_dim // head_dim, 1),
        image_size=image_size,
        patch_size=processor.patch_size,
    )
    text = LlamaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=text_dim,
        intermediate_size=8 * text_dim // 3 // 32 * 32 or 32,
        num_hidden_layers=text_layers,
        num_attention_heads=max(text_dim // head_dim, 1),
        num_key_value_heads=max(text_dim // head_dim, 1),
        max_position_embeddings=max_position_embeddings,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    mllm = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=processor.image_token_id,
        image_seq_length=(image_size // processor.patch_size) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return MLLMConditioner(MLLMConditionerConfig(mllm_config=mllm, output_dim=output_dim)).eval()


def build_tiny_components(num_layers: int = 1, seed: int = 0) -> dict:
    """
    The components of a [`VIMIPipeline`] small enough for tests: 4 frames of 16x16 pixels, random weights.

    Args:
        num_layers (`int`, *optional*, defaults to `1`): Blocks of the generator.
        seed (`int`, *optional*, defaults to `0`): Seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(["a red ball and a blue cube", "Generate a video with the text and image."], 300)
        processor = build_text_processor(tokenizer, image_size=16, patch_size=8)
        conditioner = build_conditioner(processor, 32, vision_dim=16, vision_layers=1, text_dim=32, text_layers=1,
                                        head_dim=16)  # fmt: skip
        transformer = VIMITransformer3DModel(
            num_frames=4,
            height=16,
            width=16,
            patch_size=(1, 4, 4),
            group_size=(2, 2),
            patch_dim=32,
            latent_dim=48,
            num_latents=16,
            condition_dim=32,
            num_layers=num_layers,
            num_latent_layers=1,
            cross_attention_heads=2,
            latent_heads=2,
            input_skip=True,
        ).eval()
        torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)  # zero at the start of training; tests need output
    return {
        "text_encoder": conditioner,
        "text_processor": processor,
        "transformer": transformer,
        "scheduler": EDMVideoScheduler(sigma_in=2.0, sigma_max=20.0),
        "vae": None,
        "guider": None,
    }
