# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Networks of transformers, by name on the Hub or folder: CLIP, SigLIP, DINO, VideoMAE and their like."""

from collections.abc import Sequence
from typing import Any

import torch

from .extractor import (
    FeatureExtractor,
    ImageFeatureExtractor,
    check_batch_size,
    check_videos,
    exact_inference,
    weights_sha256,
)
from .preprocessing import Preprocessing


POOLINGS = ("projection", "cls", "pooler")


class TransformersImageExtractor(ImageFeatureExtractor):
    """
    An image encoder of transformers. CLIP and SigLIP give features in the space that texts share, so that they can be
    compared with [`~TransformersImageExtractor.texts`].

    Args:
        name (`str`): Name on the Hub or folder, such as `"openai/clip-vit-base-patch32"` or `"facebook/dino-vits16"`.
        pooling (`str`, *optional*):
            `"projection"` into the space shared with texts, `"cls"` for the first token, `"pooler"` for what the model
            calls that. By default the projection where there is one, else the first token.
        preprocessing ([`Preprocessing`], *optional*): Instead of what the model's image processor says.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        batch_size (`int`, *optional*): As of [`ImageFeatureExtractor`].
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.

    Raises:
        `OSError`: if there is no such model.
        `ValueError`: if it cannot do what is asked, naming what.
    """

    def __init__(
        self,
        name: str,
        pooling: str | None = None,
        preprocessing: Preprocessing | None = None,
        revision: str | None = None,
        batch_size: int | None = None,
        device: str | torch.device = "cpu",
    ):
        from transformers import AutoModel

        self.model = _load(AutoModel, name, revision, device)
        projects = hasattr(self.model, "get_image_features")
        self.pooling = pooling or ("projection" if projects else "cls")
        if self.pooling not in POOLINGS or (self.pooling == "projection" and not projects):
            possible = ", ".join(repr(one) for one in POOLINGS if projects or one != "projection")
            raise ValueError(f"`pooling` of {name!r} must be one of {possible}, not {self.pooling!r}.")
        self.revision, self._tokenizer = revision, None
        preprocessing = preprocessing or _preprocessing(name, revision)
        with exact_inference(torch.device(device)):
            sample = self.encode(torch.zeros(1, 3, preprocessing.height, preprocessing.width, device=device))
        kind = f"{type(self.model).__name__}, {self.pooling}"
        identity = {"kind": kind, "weights_sha256": weights_sha256(self.model)}
        super().__init__(str(name), sample.shape[1], identity, preprocessing, batch_size=batch_size, device=device)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.pooling == "projection":
            return _pooled(self.model.get_image_features(pixel_values=pixels))
        outputs = getattr(self.model, "vision_model", self.model)(pixel_values=pixels)
        if self.pooling == "pooler":
            if outputs.get("pooler_output") is None:
                raise ValueError(f'{type(self.model).__name__} has no pooler with weights: use `pooling="cls"`.')
            return outputs.pooler_output.flatten(1)
        if outputs.last_hidden_state.ndim != 3:
            raise ValueError(f'{type(self.model).__name__} has no first token: use `pooling="pooler"`.')
        return outputs.last_hidden_state[:, 0]

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """
        Features of texts in the space of the images. What is longer than the model reads is cut off.

        Args:
            texts (`Sequence[str]`): The texts.

        Returns:
            `torch.Tensor` of shape `(N, dimension)`.

        Raises:
            `ValueError`: if the model reads no texts.
        """
        if self.pooling != "projection":
            raise ValueError(f"{self.name!r} with the pooling {self.pooling!r} has no features of texts: use a CLIP.")
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"`texts` must be a list of at least one text, got {texts!r}.")
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.name, revision=self.revision)
        length = self.model.config.text_config.max_position_embeddings
        padded = "siglip" in self.model.config.model_type  # trained on texts of one length, without a mask
        features = []
        with exact_inference(self.device):
            for start in range(0, len(texts), self.batch_size):
                part = list(texts[start : start + self.batch_size])
                tokens = self._tokenizer(
                    part,
                    padding="max_length" if padded else True,
                    truncation=True,
                    max_length=length,
                    return_token_type_ids=False,
                    return_attention_mask=not padded,
                    return_tensors="pt",
                ).to(self.device)
                features.append(_pooled(self.model.get_text_features(**tokens)).float())
        return torch.cat(features)


class TransformersVideoExtractor(FeatureExtractor):
    """
    A video encoder of transformers, such as VideoMAE. Of a model with a classifier the features are what the
    classifier gets; of any other the mean of the last layer's tokens.

    Args:
        name (`str`): Name on the Hub or folder, such as `"MCG-NJU/videomae-base-finetuned-kinetics"`.
        output (`str`, *optional*, defaults to `"features"`): `"features"`, or `"logits"` of the classifier.
        preprocessing ([`Preprocessing`], *optional*): Instead of what the model's image processor says.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        batch_size (`int`, *optional*, defaults to `8`): Videos that go through it together.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.

    Raises:
        `OSError`: if there is no such model.
        `ValueError`: if it has no classifier for logits, or (when called) videos have another number of frames.
    """

    def __init__(
        self,
        name: str,
        output: str = "features",
        preprocessing: Preprocessing | None = None,
        revision: str | None = None,
        batch_size: int = 8,
        device: str | torch.device = "cpu",
    ):
        from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification

        check_batch_size(batch_size)
        config = AutoConfig.from_pretrained(name, revision=revision)
        self.classifies = any(each.endswith("ForVideoClassification") for each in config.architectures or ())
        if output not in ("features", "logits") or (output == "logits" and not self.classifies):
            raise ValueError(
                f'`output` must be "features" or, of a model with a classifier, "logits", not {output!r}: {name!r} is '
                f"{', '.join(config.architectures or ['of no stated architecture'])}."
            )
        loader = AutoModelForVideoClassification if self.classifies else AutoModel
        self.model = _load(loader, name, revision, device)
        kind, weights = type(self.model).__name__, weights_sha256(self.model)
        if self.classifies and output == "features":
            self.model.classifier = torch.nn.Identity()
        self.preprocessing = preprocessing or _preprocessing(name, revision)
        self.num_frames = int(config.num_frames)
        self.batch_size, self.device = batch_size, torch.device(device)
        with exact_inference(self.device):
            shape = 1, self.num_frames, 3, self.preprocessing.height, self.preprocessing.width
            dimension = self._encode(torch.zeros(shape, device=device)).shape[1]
        identity = {
            "kind": kind,
            "weights_sha256": weights,
            "preprocessing": {**self.preprocessing.to_dict(), "num_frames": self.num_frames},
        }
        super().__init__(str(name), dimension, identity, output)

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        check_videos(videos, self.num_frames)
        features = []
        with exact_inference(self.device):
            for part in videos.split(self.batch_size):
                pixels = self.preprocessing(part.flatten(0, 1).to(self.device, torch.float32))
                features.append(self._encode(pixels.unflatten(0, part.shape[:2])).float())
        return torch.cat(features)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs = self.model(pixel_values=pixels)
        return outputs.logits if self.classifies else outputs.last_hidden_state.mean(dim=1)


def _load(loader: Any, name: str, revision: str | None, device: str | torch.device) -> torch.nn.Module:
    model, info = loader.from_pretrained(name, revision=revision, dtype=torch.float32, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None  # DINO has none; it would be drawn at random, and change the hash
    elif missing:
        raise ValueError(f"{name!r} has no weights for {', '.join(missing[:3])} ...: it is another kind of model.")
    return model.eval().requires_grad_(False).to(device)


def _preprocessing(name: str, revision: str | None) -> Preprocessing:
    from transformers import AutoImageProcessor

    return Preprocessing.from_image_processor(AutoImageProcessor.from_pretrained(name, revision=revision))


def _pooled(outputs: Any) -> torch.Tensor:
    return outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output
