# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""LoRA weights of the generator and of the MLLM, through diffusers' loaders."""

import os
from collections.abc import Callable

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.loaders.lora_base import _load_lora_into_text_encoder


class VIMILoraLoaderMixin(CogVideoXLoraLoaderMixin):
    r"""
    Loads LoRA layers into [`VIMITransformer3DModel`] and [`MLLMConditioner`] and saves them: `load_lora_weights`,
    `save_lora_weights`, `set_adapters`, `fuse_lora`, `unfuse_lora` and the rest of [`~loaders.LoraBaseMixin`].

    It is diffusers' mixin for pipelines whose only trained module is `transformer`, with `text_encoder` beside it.
    Pickled files (`.bin`) are never looked for: they are read only when a call names one, and then by torch's loader
    that runs no code.
    """

    _lora_loadable_modules = ["transformer", "text_encoder"]

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

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs,
    ) -> None:
        """
        Loads LoRA layers of the generator, the MLLM or both, see
        [`~loaders.StableDiffusionLoraLoaderMixin.load_lora_weights`].

        Raises:
            ValueError: If there are layers of the MLLM and this pipeline has no `text_encoder`.
        """
        on_meta = {"low_cpu_mem_usage": kwargs.pop("low_cpu_mem_usage", True)}
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        if not all("lora" in key for key in state_dict):
            raise ValueError("This is no LoRA checkpoint: every name in one holds 'lora'.")
        models = {
            part: getattr(self, part, None)
            for part in self._lora_loadable_modules
            if any(key.startswith(f"{part}.") for key in state_dict)
        }
        if not models:
            raise ValueError(f"These LoRA layers are for none of {', '.join(self._lora_loadable_modules)}.")
        if missing := [part for part, model in models.items() if model is None]:
            raise ValueError(f"There are LoRA layers for `{missing[0]}`, which this pipeline lacks: load it first.")
        if adapter_name is None:  # one name for both
            taken = {name for names in self.get_list_adapters().values() for name in names}
            adapter_name = next(f"default_{i}" for i in range(len(taken) + 1) if f"default_{i}" not in taken)
        shared = {"adapter_name": adapter_name, "metadata": metadata, "hotswap": hotswap, "_pipeline": self, **on_meta}
        if "text_encoder" in models:
            _load_lora_into_text_encoder(
                state_dict, network_alphas=None, text_encoder=models["text_encoder"], prefix="text_encoder", **shared
            )
        if "transformer" in models:
            self.load_lora_into_transformer(state_dict, transformer=models["transformer"], **shared)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        transformer_lora_layers: dict[str, torch.Tensor] | None = None,
        text_encoder_lora_layers: dict[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict | None = None,
        text_encoder_lora_adapter_metadata: dict | None = None,
    ) -> None:
        """
        Saves LoRA layers of the generator, the MLLM or both in one file, see
        [`~loaders.StableDiffusionLoraLoaderMixin.save_lora_weights`].
        """
        layers = {"transformer": transformer_lora_layers, "text_encoder": text_encoder_lora_layers}
        layers = {part: own for part, own in layers.items() if own}
        if not layers:
            raise ValueError("Pass `transformer_lora_layers`, `text_encoder_lora_layers` or both.")
        metadata = {
            "transformer": transformer_lora_adapter_metadata,
            "text_encoder": text_encoder_lora_adapter_metadata,
        }
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers=layers,
            lora_metadata={part: own for part, own in metadata.items() if part in layers},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def fuse_lora(self, components: list[str] = ("transformer", "text_encoder"), **kwargs) -> None:
        """See [`~loaders.LoraBaseMixin.fuse_lora`]."""
        super().fuse_lora(components=list(components), **kwargs)

    def unfuse_lora(self, components: list[str] = ("transformer", "text_encoder"), **kwargs) -> None:
        """See [`~loaders.LoraBaseMixin.unfuse_lora`]."""
        super().unfuse_lora(components=list(components), **kwargs)
