# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA weights of the generator, through diffusers' loaders."""

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin


class VIMILoraLoaderMixin(CogVideoXLoraLoaderMixin):
    r"""
    Loads LoRA layers into [`VIMITransformer3DModel`] and saves them: `load_lora_weights`, `save_lora_weights`,
    `set_adapters`, `fuse_lora`, `unfuse_lora` and the rest of [`~loaders.LoraBaseMixin`].

    It is diffusers' mixin for pipelines whose only trained module is `transformer`, restricted to safetensors.
    """

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | dict[str, torch.Tensor], **kwargs
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict | None]:
        """
        The LoRA layers of a folder, file or Hub repository, see
        [`~loaders.StableDiffusionLoraLoaderMixin.lora_state_dict`].

        Raises:
            `ValueError`: if `use_safetensors=False` is passed: pickles are not read.
        """
        if kwargs.setdefault("use_safetensors", True) is False:
            raise ValueError("LoRA weights are read from safetensors alone: drop `use_safetensors=False`.")
        return super().lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
