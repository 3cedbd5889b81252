# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The multimodal conditioner: any image-text-to-text model of transformers, giving the embedding C of VIMI."""

import copy
import inspect
import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.import_utils import torch_compilable_check


CONFIG_KEYS = ("output_dim", "hidden_layer", "crop_start", "num_queries", "num_query_layers")
HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
LOADING_KEYS = HUB_KEYS + (
    "attn_implementation",
    "device_map",
    "dtype",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "quantization_config",
    "use_safetensors",
    "variant",
)
# Families whose images enter as embeddings alone, so that the conditioner can merge them with the text itself.
MERGED_HERE = ("llava", "idefics3", "smolvlm")


class MLLMConditionerConfig(PreTrainedConfig):
    """
    Configuration of [`MLLMConditioner`].

    Args:
        mllm_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the multimodal language model, with its `model_type`. Defaults to a LLaVA configuration.
        output_dim (`int`, *optional*, defaults to `1024`):
            Channels of C, the generator's `condition_dim`.
        hidden_layer (`int`, *optional*, defaults to `-1`):
            Which of the language model's hidden states becomes C: `0` is the embedding, `-1` the last layer, after the
            model's final norm.
        crop_start (`int`, *optional*, defaults to `0`):
            Number of tokens at the start of every prompt that C leaves out: the part of a chat template in front of
            the user's text, see [`chat_prefix_length`]. The model reads them all the same.
        num_queries (`int`, *optional*, defaults to `0`):
            With learned queries, the number of tokens of C, whatever the prompt's length; `0` gives C one token for
            each of the prompt.
        num_query_layers (`int`, *optional*, defaults to `2`):
            Cross-attention blocks of the learned queries.

    Raises:
        `ValueError`: for a `model_type` that transformers does not know, and for a number out of its range.
    """

    model_type = "vimi_mllm_conditioner"
    sub_configs = {"mllm_config": AutoConfig}

    def __init__(
        self,
        mllm_config: dict | PreTrainedConfig | None = None,
        output_dim: int = 1024,
        hidden_layer: int = -1,
        crop_start: int = 0,
        num_queries: int = 0,
        num_query_layers: int = 2,
        **kwargs,
    ):
        if mllm_config is None:
            mllm_config = AutoConfig.for_model("llava")
        elif isinstance(mllm_config, dict):
            if mllm_config.get("model_type") not in CONFIG_MAPPING:
                raise ValueError(
                    f"`mllm_config` has the model_type {mllm_config.get('model_type')!r}, which this release of "
                    "transformers does not know: correct it, or update transformers."
                )
            mllm_config = AutoConfig.for_model(**mllm_config)
        for name, value, least in (
            ("output_dim", output_dim, 1),
            ("crop_start", crop_start, 0),
            ("num_queries", num_queries, 0),
            ("num_query_layers", num_query_layers, 1),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
        layers = getattr(mllm_config.get_text_config(), "num_hidden_layers", None)
        if layers is not None and not -layers - 1 <= hidden_layer <= layers:
            raise ValueError(
                f"`hidden_layer` {hidden_layer} is out of range: the language model has {layers} layers, use "
                f"{-layers - 1} to {layers}."
            )
        super().__init__(**kwargs)  # first: it would reset the attention choice of `mllm_config`
        self.mllm_config = mllm_config
        self.output_dim = output_dim
        self.hidden_layer = hidden_layer
        self.crop_start = crop_start
        self.num_queries = num_queries
        self.num_query_layers = num_query_layers


class QueryBlock(nn.Module):
    """Cross-attention from learned queries to the prompt's hidden states, and an MLP, both with pre-norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.num_heads = math.gcd(dim, max(dim // 64, 1))
        self.norm_query = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(dim, 2 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, queries: torch.Tensor, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        query, key, value = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.to_q(self.norm_query(queries)), *self.to_kv(states).chunk(2, dim=-1))
        )
        attended = F.scaled_dot_product_attention(query, key, value, None if mask is None else mask[:, None, None])
        queries = queries + self.to_out(attended.transpose(1, 2).flatten(2))
        return queries + self.mlp(self.norm_mlp(queries))


class QueryResampler(nn.Module):
    """
    Learned queries that read the hidden states of a prompt of any length into a fixed number of tokens.

    Args:
        dim (`int`): Channels of the hidden states and of the result.
        num_queries (`int`): Number of resulting tokens.
        num_layers (`int`): Number of [`QueryBlock`]s.
    """

    def __init__(self, dim: int, num_queries: int, num_layers: int):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, dim))
        self.blocks = nn.ModuleList(QueryBlock(dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        queries = self.queries.to(states.dtype).expand(states.shape[0], -1, -1)
        for block in self.blocks:
            queries = block(queries, states, mask)
        return self.norm(queries)


class MLLMConditioner(PreTrainedModel):
    """
    Maps an interleaved prompt of text and images to the conditional embedding C, which takes the place of text
    embeddings in the generator: the hidden states of all tokens, text and image, projected to `output_dim`; or, with
    `num_queries`, as many tokens read out of them by learned queries.

    Frozen, adapted with LoRA or trained with the generator: the class is the same.

    Args:
        config ([`MLLMConditionerConfig`]): Configuration.
        mllm (`PreTrainedModel`, *optional*):
            A loaded image-text-to-text model to hold instead of a new one, as [`~MLLMConditioner.from_mllm`] does.

    Raises:
        `ValueError`: if the multimodal model is none that takes images and gives hidden states for all tokens.
    """

    config_class = MLLMConditionerConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: MLLMConditionerConfig, mllm: PreTrainedModel | None = None):
        super().__init__(config)
        check_mllm_config(config.mllm_config)
        if mllm is None:
            mllm = AutoModelForImageTextToText.from_config(config.mllm_config)
        else:
            for module in mllm.modules():
                module._is_hf_initialized = True  # `post_init` leaves its weights alone
        if mllm.base_model is mllm:
            raise ValueError(
                f"{type(mllm).__name__} has no model without head inside, whose hidden states could become C: use "
                "another image-text-to-text model."
            )
        self.mllm = mllm
        self._takes_positions = "position_ids" in inspect.signature(type(mllm.base_model).forward).parameters
        hidden_size = config.mllm_config.get_text_config().hidden_size
        self.norm = nn.LayerNorm(hidden_size)
        self.proj = nn.Linear(hidden_size, config.output_dim)
        if config.num_queries:
            self.resampler = QueryResampler(hidden_size, config.num_queries, config.num_query_layers)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, QueryResampler):
            nn.init.normal_(module.queries, std=0.02)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "MLLMConditioner":
        # What is computed and not saved, such as rotary frequencies, keeps its precision, as loading with `dtype`
        # leaves it: rounded to bf16, the angles of far tokens would be off by whole radians.
        computed = [
            (module, name, module._buffers[name])
            for module in self.modules()
            for name in module._non_persistent_buffers_set
            if module._buffers.get(name) is not None
        ]
        super()._apply(fn, recurse)
        for module, name, before in computed:
            if module._buffers[name].dtype != before.dtype:
                module._buffers[name] = before.to(module._buffers[name].device)
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The language model's table of token embeddings."""
        return self.mllm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's table of token embeddings."""
        self.mllm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The language-modelling head, which C does not need; quantisation leaves it alone."""
        return self.mllm.get_output_embeddings()

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **mllm_inputs,
    ) -> torch.Tensor:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, tokens)`):
                Token ids with the processor's placeholders for images.
            attention_mask (`torch.Tensor` of shape `(batch_size, tokens)`, *optional*):
                0 marks padding, on either side.
            pixel_values (`torch.Tensor`, *optional*):
                The processor's images: for LLaVA `(images, channels, height, width)` over the whole batch, for
                Idefics3 and SmolVLM `(batch_size, images, channels, height, width)`, for Qwen-VL
                `(patches, channels)`.
            mllm_inputs:
                Whatever else the model's processor returns, such as `pixel_attention_mask`, `image_grid_thw` or
                `mm_token_type_ids`.

        Returns:
            `torch.Tensor` of shape `(batch_size, tokens - crop_start, output_dim)`, or with learned queries
            `(batch_size, num_queries, output_dim)`: C. [`~MLLMConditioner.condition_mask`] tells which of its tokens
            count.

        Raises:
            `ValueError`: if there are no tokens, a prompt has none left after `crop_start`, or images and placeholders
                differ in number.
        """
        if not input_ids.shape[1]:
            raise ValueError("The prompts have no tokens: the empty prompt needs one, such as the end of text.")
        if attention_mask is None and self.config.crop_start:
            attention_mask = torch.ones_like(input_ids)
        mask = None if attention_mask is None else self._cropped_mask(attention_mask)
        hidden_states = self._hidden_states(input_ids, attention_mask, pixel_values, **mllm_inputs)
        hidden_states = hidden_states[:, self.config.crop_start :]
        if hidden_states.shape[-1] != self.norm.normalized_shape[0]:
            raise ValueError(
                f"The hidden states of layer {self.config.hidden_layer} have {hidden_states.shape[-1]} channels, "
                f"the connector takes {self.norm.normalized_shape[0]}: wrap the model with `from_mllm`."
            )
        weight = self.norm.weight
        if weight.device.type != "meta":  # offloaded: the hook moves what the connector gets
            hidden_states = hidden_states.to(weight.device)
        hidden_states = self.norm(hidden_states.to(weight.dtype))
        if self.config.num_queries:
            hidden_states = self.resampler(hidden_states, mask)
        return self.proj(hidden_states)

    def condition_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """
        Which tokens of C count, for the prompts that [`~MLLMConditioner.forward`] gets with `attention_mask`.

        Args:
            attention_mask (`torch.Tensor` of shape `(batch_size, tokens)`): The processor's mask.

        Returns:
            `torch.BoolTensor` of the batch size and length of C: without padding and the first `crop_start` tokens of
            each prompt; all true for learned queries.

        Raises:
            `ValueError`: if a prompt has no token left after `crop_start`.
        """
        mask = self._cropped_mask(attention_mask)
        return mask.new_ones(mask.shape[0], self.config.num_queries) if self.config.num_queries else mask

    def _cropped_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        mask, crop = attention_mask.bool(), self.config.crop_start
        if not crop:
            return mask
        count = mask.cumsum(dim=1)
        torch_compilable_check(
            count[:, -1].min() > crop,
            lambda: (
                f"`crop_start` {crop} leaves nothing of a prompt of {int(count[:, -1].min())} tokens: lay prompts out "
                "with the chat template whose start it counts, or lower it."
            ),
        )
        # With padding on the left a prompt's start lies further right than the columns that are cut off.
        return (mask & (count > crop))[:, crop:]

    def _hidden_states(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **mllm_inputs,
    ) -> torch.Tensor:
        """The language model's hidden states of `hidden_layer`, `(batch_size, tokens, hidden_size)`."""
        last = self.config.hidden_layer == -1
        # peft's wrapper calls the layers it changed inside the model, so they count without its own forward pass
        mllm = self.mllm.get_base_model() if hasattr(self.mllm, "get_base_model") else self.mllm
        backbone = mllm.base_model  # without the language-modelling head
        if pixel_values is not None:
            pixel_values = pixel_values.to(mllm.dtype)
        if backbone.config.model_type in MERGED_HERE:
            features = None
            if pixel_values is not None:
                options = {name: mllm_inputs.pop(name, None) for name in ("image_sizes", "pixel_attention_mask")}
                options = {name: value for name, value in options.items() if value is not None}
                features = torch.cat(tuple(backbone.get_image_features(pixel_values, **options).pooler_output))
            mllm_inputs["inputs_embeds"] = self.embed_inputs(input_ids, features)
        else:
            mllm_inputs.update(input_ids=input_ids)
            if pixel_values is not None:
                mllm_inputs.update(pixel_values=pixel_values)
        mllm_inputs.update(self._positions(backbone, input_ids, attention_mask, mllm_inputs))
        output = backbone(attention_mask=attention_mask, use_cache=False, output_hidden_states=not last, **mllm_inputs)
        return output.last_hidden_state if last else output.hidden_states[self.config.hidden_layer]

    def _positions(
        self,
        backbone: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mllm_inputs: dict[str, Any],
    ) -> dict[str, torch.Tensor]:
        """What tells the backbone each token's position, so that padding on the left moves none of them."""
        if mllm_inputs.get("image_grid_thw") is not None or mllm_inputs.get("video_grid_thw") is not None:
            # Qwen-VL: three axes, from the mask, the grids and each token's kind; without kinds it would count along
            # one axis as if images were text.
            if hasattr(backbone, "get_rope_index") and mllm_inputs.get("mm_token_type_ids") is None:
                config = backbone.config
                kinds = (input_ids == config.image_token_id).int() + 2 * (input_ids == config.video_token_id).int()
                return {"mm_token_type_ids": kinds}
            return {}
        if attention_mask is None or not self._takes_positions or "position_ids" in mllm_inputs:
            return {}
        before = attention_mask.bool().int().argmax(dim=1, keepdim=True)  # padding in front of the prompt
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        return {"position_ids": (steps - before).clamp(min=0)}

    def embed_inputs(self, input_ids: torch.Tensor, image_features: torch.Tensor | None = None) -> torch.Tensor:
        """
        The merge of text embeddings and image features. The models' own reads values on the host in each call (a
        message of its check) and in the backward pass (`masked_scatter`), which a captured training step cannot.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, tokens)`): Token ids with placeholders.
            image_features (`torch.Tensor` of shape `(image_tokens, hidden_size)`, *optional*):
                One row for each placeholder.
        """
        embeds = self.mllm.get_input_embeddings()(input_ids)
        if image_features is None:
            return embeds
        is_image = (input_ids == self.mllm.config.image_token_id).to(embeds.device)
        torch_compilable_check(
            is_image.sum() == image_features.shape[0],
            "The prompts' image placeholders and the images' features differ in number.",
        )
        row = (is_image.flatten().cumsum(0) - 1).clamp(min=0)
        features = image_features.to(embeds.device, embeds.dtype)[row].view(embeds.shape)
        return torch.where(is_image[..., None], features, embeds)

    @classmethod
    def from_mllm(cls, mllm: PreTrainedModel | str | os.PathLike, **kwargs) -> "MLLMConditioner":
        """
        Wraps an image-text-to-text model. A given model is held, not copied; the connector to C starts fresh, on the
        model's device and in its dtype.

        Args:
            mllm (`PreTrainedModel`, `str` or `os.PathLike`):
                A model that `AutoModelForImageTextToText` knows, a Hub id such as `"Qwen/Qwen2.5-VL-3B-Instruct"`, or
                a folder.
            kwargs:
                The options of [`MLLMConditionerConfig`], and for a Hub id or folder those of loading: `dtype`,
                `quantization_config`, `device_map`, `revision`, `token`, `attn_implementation`, `cache_dir`, ...

        Raises:
            `ValueError`: if the model takes no images, or an argument is unknown. Before any weights are loaded.

        Example:
            ```python
            >>> import torch
            >>> from vimi_diffusers import MLLMConditioner

            >>> conditioner = MLLMConditioner.from_mllm(
            ...     "HuggingFaceTB/SmolVLM-256M-Instruct", dtype=torch.bfloat16, output_dim=1024
            ... )
            ```
        """
        options = {name: kwargs.pop(name) for name in CONFIG_KEYS if name in kwargs}
        by_name = isinstance(mllm, (str, os.PathLike))
        unknown = sorted(set(kwargs) - set(LOADING_KEYS if by_name else ()))
        if unknown:
            known = (*CONFIG_KEYS, *(LOADING_KEYS if by_name else ()))
            raise ValueError(f"`from_mllm` does not take {', '.join(unknown)}: choose from {', '.join(known)}.")
        if by_name:
            found = AutoConfig.from_pretrained(mllm, **{name: kwargs[name] for name in HUB_KEYS if name in kwargs})
            check_mllm_config(found, f"{os.fspath(mllm)!r}")
            MLLMConditionerConfig(mllm_config=found, **options)  # a bad option is refused before weights are loaded
            mllm = AutoModelForImageTextToText.from_pretrained(mllm, **kwargs)
        check_mllm_config(mllm.config, type(mllm).__name__)
        if not isinstance(mllm, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(mllm.config)]):
            raise ValueError(
                f"{type(mllm).__name__} is not the class that `AutoModelForImageTextToText` loads for "
                f"{type(mllm.config).__name__}: load the model with it, and add adapters after wrapping."
            )
        model = cls(MLLMConditionerConfig(mllm_config=mllm.config, dtype=mllm.dtype, **options), mllm=mllm)
        device = mllm.device if mllm.device.type != "meta" else torch.device("cpu")
        for name, module in model.named_children():
            if name != "mllm":
                module.to(device, mllm.dtype)
        model._take_over_placement(mllm)
        return model.eval()

    def _take_over_placement(self, mllm: PreTrainedModel) -> None:
        """Quantisation and device map of the wrapped model, where saving and pipelines look for them."""
        if getattr(mllm, "hf_quantizer", None) is not None:
            names = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
            for name in names:
                if hasattr(mllm, name):
                    setattr(self, name, getattr(mllm, name))
            quantization = copy.deepcopy(mllm.hf_quantizer.quantization_config)
            bitsandbytes = hasattr(quantization, "llm_int8_skip_modules")
            kept = [f"mllm.{name}" for name in getattr(mllm.hf_quantizer, "modules_to_not_convert", None) or ()]
            key = "llm_int8_skip_modules" if bitsandbytes else "modules_to_not_convert"
            setattr(quantization, key, [*kept, "^norm", "^proj", "^resampler"])
            self.config.quantization_config = quantization
        if getattr(mllm, "hf_device_map", None) is not None:
            from accelerate.hooks import AlignDevicesHook, add_hook_to_module

            self.hf_device_map = {f"mllm.{name}".rstrip("."): place for name, place in mllm.hf_device_map.items()}
            add_hook_to_module(self, AlignDevicesHook(io_same_device=True))  # C comes back where the prompt came from


def check_mllm_config(config: PreTrainedConfig, name: str = "`mllm_config`") -> None:
    """Raise a `ValueError` if `config` is not that of an image-text-to-text model whose hidden states can be C."""
    fix = "use an image-text-to-text model, such as LLaVA, SmolVLM or Qwen-VL"
    if isinstance(config, MLLMConditionerConfig):
        raise ValueError(f"{name} is a conditioner already: load it with `MLLMConditioner.from_pretrained`.")
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(f"{name} has the model_type {config.model_type!r}, which reads no images with text: {fix}.")
    if config.is_encoder_decoder:
        raise ValueError(f"{name} has the model_type {config.model_type!r}, an encoder with a decoder: {fix}.")


AutoConfig.register(MLLMConditionerConfig.model_type, MLLMConditionerConfig, exist_ok=True)
AutoModel.register(MLLMConditionerConfig, MLLMConditioner, exist_ok=True)
