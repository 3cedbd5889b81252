# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA weights of the generator, through diffusers' loaders."""

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin


class VIMILoraLoaderMixin(CogVideoXLoraLoaderMixin):
    r"""
    Loads LoRA layers into [`VIMITransformer3DModel`] and saves them: `load_lora_weights`, `save_lora_weights`,
    `set_adapters`, `fuse_lora`, `unfuse_lora` and the rest of [`~loaders.LoraBaseMixin`].

    It is diffusers' mixin for pipelines whose only trained module is `transformer`. Pickled files (`.bin`) are never
    looked for: they are read only when a call names one, and then by torch's loader that runs no code.
    """

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | dict[str, torch.Tensor], **kwargs
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict | None]:
        """
        The LoRA layers of a folder, file or Hub repository, see
        [`~loaders.StableDiffusionLoraLoaderMixin.lora_state_dict`].
        """
        named = kwargs.get("weight_name") or str(pretrained_model_name_or_path_or_dict)
        if not named.endswith(".bin"):
            kwargs.setdefault("use_safetensors", True)
        return super().lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
