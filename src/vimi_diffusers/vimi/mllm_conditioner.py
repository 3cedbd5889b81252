# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The multimodal conditioner: any image-text-to-text model of transformers, giving the embedding C of VIMI."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.llava.modeling_llava import LlavaModel
from transformers.utils.import_utils import torch_compilable_check


class MLLMConditionerConfig(PreTrainedConfig):
    """
    Configuration of [`MLLMConditioner`].

    Args:
        mllm_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the multimodal language model, with its `model_type`. Defaults to a LLaVA configuration.
        output_dim (`int`, *optional*, defaults to `1024`):
            Channels of C, the generator's `condition_dim`.
        hidden_layer (`int`, *optional*, defaults to `-1`):
            Which of the language model's hidden states becomes C; `-1` is the last, after its norm.
    """

    model_type = "vimi_mllm_conditioner"
    sub_configs = {"mllm_config": AutoConfig}

    def __init__(
        self,
        mllm_config: dict | PreTrainedConfig | None = None,
        output_dim: int = 1024,
        hidden_layer: int = -1,
        **kwargs,
    ):
        if mllm_config is None:
            mllm_config = AutoConfig.for_model("llava")
        elif isinstance(mllm_config, dict):
            mllm_config = AutoConfig.for_model(**mllm_config)
        self.mllm_config = mllm_config
        self.output_dim = output_dim
        self.hidden_layer = hidden_layer
        super().__init__(**kwargs)


class MLLMConditioner(PreTrainedModel):
    """
    Maps an interleaved prompt of text and images to the conditional embedding C, which takes the place of text
    embeddings in the generator: the hidden states of all tokens, text and image, projected to `output_dim`.

    Frozen, adapted with LoRA or trained with the generator: the class is the same.
    """

    config_class = MLLMConditionerConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: MLLMConditionerConfig):
        super().__init__(config)
        self.mllm = AutoModelForImageTextToText.from_config(config.mllm_config)
        hidden_size = config.mllm_config.get_text_config().hidden_size
        self.norm = nn.LayerNorm(hidden_size)
        self.proj = nn.Linear(hidden_size, config.output_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.proj:
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif module is self.norm:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

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
            attention_mask (`torch.Tensor` of shape `(batch_size, tokens)`, *optional*): 0 marks padding.
            pixel_values (`torch.Tensor`, *optional*):
                The processor's images, for LLaVA `(images, channels, height, width)` over the whole batch.
            mllm_inputs: Whatever else the model's processor returns.

        Returns:
            `torch.Tensor` of shape `(batch_size, tokens, output_dim)`: C.
        """
        last = self.config.hidden_layer == -1
        backbone = getattr(self.mllm, self.mllm.base_model_prefix)  # without the language-modelling head
        if isinstance(backbone, LlavaModel) and pixel_values is not None:
            features = backbone.get_image_features(pixel_values.to(self.mllm.dtype)).pooler_output
            mllm_inputs["inputs_embeds"] = self.embed_inputs(input_ids, torch.cat(tuple(features)))
        else:
            mllm_inputs["input_ids"] = input_ids
            if pixel_values is not None:
                mllm_inputs["pixel_values"] = pixel_values.to(self.mllm.dtype)
        output = backbone(attention_mask=attention_mask, use_cache=False, output_hidden_states=not last, **mllm_inputs)
        hidden_states = output.last_hidden_state if last else output.hidden_states[self.config.hidden_layer]
        return self.proj(self.norm(hidden_states))

    def embed_inputs(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """
        LLaVA's merge of text embeddings and image features. Its own reads values on the host in each call (a message
        of its check) and in the backward pass (`masked_scatter`), which a captured training step cannot.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, tokens)`): Token ids with placeholders.
            image_features (`torch.Tensor` of shape `(image_tokens, hidden_size)`): One row for each placeholder.
        """
        is_image = input_ids == self.mllm.config.image_token_id
        torch_compilable_check(
            is_image.sum() == image_features.shape[0],
            "The prompts' image placeholders and the images' features differ in number.",
        )
        embeds = self.mllm.get_input_embeddings()(input_ids)
        row = (is_image.flatten().cumsum(0) - 1).clamp(min=0)
        features = image_features.to(embeds.dtype)[row].view(embeds.shape)
        return torch.where(is_image[..., None], features, embeds)

    @classmethod
    def from_mllm(cls, mllm: PreTrainedModel, **config_kwargs) -> "MLLMConditioner":
        """
        Wraps a loaded image-text-to-text model; its weights are taken over, the projection starts fresh.

        Args:
            mllm (`PreTrainedModel`): A model that `AutoModelForImageTextToText` knows.
            config_kwargs: `output_dim` and `hidden_layer` of [`MLLMConditionerConfig`].
        """
        model = cls(MLLMConditionerConfig(mllm_config=mllm.config, **config_kwargs))
        model.mllm.load_state_dict(mllm.state_dict())
        return model.eval()


AutoConfig.register(MLLMConditionerConfig.model_type, MLLMConditionerConfig, exist_ok=True)
AutoModel.register(MLLMConditionerConfig, MLLMConditioner, exist_ok=True)
