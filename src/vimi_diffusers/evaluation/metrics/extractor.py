# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What every feature network offers: features of videos, and an identity that tells it from others."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...media import load_image
from .preprocessing import Preprocessing


OUTPUTS = ("features", "logits", "probabilities")


class FeatureExtractor(ABC):
    """
    Turns videos into vectors. Weights are float32, and so are products on a GPU (no TF32), so that the same videos
    give the same features on other machines but for rounding.

    Args:
        name (`str`): What people call it.
        dimension (`int`): Length of the vectors.
        identity (`Mapping[str, Any]`):
            What else tells it from others, as JSON values: the kind of network, the hash of its weights, the
            preprocessing.
        output (`str`, *optional*, defaults to `"features"`): What the vectors are, one of [`OUTPUTS`].
    """

    def __init__(self, name: str, dimension: int, identity: Mapping[str, Any], output: str = "features"):
        if output not in OUTPUTS:
            raise ValueError(f"`output` must be one of {', '.join(OUTPUTS)}, not {output!r}.")
        self.name, self.dimension, self.output = name, dimension, output
        self.identity = {"name": name, "output": output, "dimension": dimension, **identity}

    @abstractmethod
    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        """
        Args:
            videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): RGB in [0, 1], on any device.

        Returns:
            `torch.Tensor` of shape `(B, dimension)`: float32, on the extractor's device.

        Raises:
            `ValueError`: if there is something else in `videos`.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.output}, dimension {self.dimension})"


class ImageFeatureExtractor(FeatureExtractor):
    """
    A network for images: of a video it gives the features of every frame ([`~ImageFeatureExtractor.frames`]), or their
    mean when it is called.

    Args:
        name, dimension, identity, output: As of [`FeatureExtractor`].
        preprocessing ([`Preprocessing`]): What the network gets to see.
        batch_size (`int`, *optional*):
            Images that go through the network together; 64 on a GPU and 4 on a CPU, where more are slower.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    def __init__(
        self,
        name: str,
        dimension: int,
        identity: Mapping[str, Any],
        preprocessing: Preprocessing,
        output: str = "features",
        batch_size: int | None = None,
        device: str | torch.device = "cpu",
    ):
        super().__init__(name, dimension, {**identity, "preprocessing": preprocessing.to_dict()}, output)
        self.preprocessing, self.device = preprocessing, torch.device(device)
        self.batch_size = (4 if self.device.type == "cpu" else 64) if batch_size is None else batch_size
        check_batch_size(self.batch_size)

    @abstractmethod
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features `(N, dimension)` of preprocessed images `(N, 3, height, width)` on the extractor's device."""

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        return self.frames(videos).mean(dim=1)

    def frames(self, videos: torch.Tensor) -> torch.Tensor:
        """
        Features of every frame.

        Args:
            videos (`torch.Tensor` of shape `(B, T, 3, H, W)`): RGB in [0, 1].

        Returns:
            `torch.Tensor` of shape `(B, T, dimension)`.
        """
        check_videos(videos)
        flat = videos.flatten(0, 1)
        return self._features(flat.split(self.batch_size)).unflatten(0, videos.shape[:2])

    def images(self, images: Sequence[Image.Image | str | Path | torch.Tensor]) -> torch.Tensor:
        """
        Features of images of any sizes, such as references.

        Args:
            images (`Sequence`): PIL images or files (transparency on white), or tensors `(3, H, W)` in [0, 1].

        Returns:
            `torch.Tensor` of shape `(N, dimension)`.
        """
        if not len(images):
            raise ValueError("There is no image to take features of.")
        return self._features([_image_tensor(image)[None] for image in images])

    def _features(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features of the images `(n, 3, H, W)` in all parts; a part's images have one size."""
        features, waiting = [], []
        with exact_inference(self.device):
            for number, part in enumerate(parts):
                waiting.append(self.preprocessing(part.to(self.device, torch.float32)))
                if number == len(parts) - 1 or sum(map(len, waiting)) >= self.batch_size:
                    features.append(self.encode(torch.cat(waiting)).float())
                    waiting = []
        return torch.cat(features)


def _image_tensor(image: Image.Image | str | Path | torch.Tensor) -> torch.Tensor:
    if not isinstance(image, torch.Tensor):
        return torch.from_numpy(np.array(load_image(image))).permute(2, 0, 1) / 255
    if image.ndim != 3:
        raise ValueError(f"An image must have the shape (3, H, W), got {tuple(image.shape)}.")
    check_videos(image[None, None])
    return image


def check_videos(videos: torch.Tensor, num_frames: int | None = None) -> None:
    """
    Raises:
        `ValueError`: if `videos` is not `(B, T, 3, H, W)`, floating-point, finite and in [0, 1], or T is not
            `num_frames`.
    """
    shape = tuple(videos.shape)
    if len(shape) != 5 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"Videos must have the shape (B, T, 3, H, W), got {shape}.")
    if num_frames is not None and shape[1] != num_frames:
        raise ValueError(f"Videos must have {num_frames} frames, got {shape[1]}.")
    if not videos.is_floating_point():
        raise ValueError(f"Videos must be floating-point in [0, 1], got {videos.dtype}: divide bytes by 255.")
    low, high = (float(value) for value in videos.aminmax())
    if not (-1e-3 <= low and high <= 1 + 1e-3):  # not, because of nan
        raise ValueError(f"Values of videos must be in [0, 1], got {low:.4g} to {high:.4g}.")


def check_batch_size(batch_size: int) -> None:
    """
    Raises:
        `ValueError`: if it is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, not {batch_size}.")


def weights_sha256(module: torch.nn.Module) -> str:
    """Hash of a module's parameters and floating-point buffers in their precision, whatever a library calls them."""
    hashes = []
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            data = tensor.detach().cpu().contiguous()
            digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
            digest.update(data.flatten().view(torch.uint8).numpy())  # numpy has no bfloat16
            hashes.append(digest.hexdigest())
    return hashlib.sha256(" ".join(sorted(hashes)).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exact_inference(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, and on NVIDIA GPUs float32 instead of TF32."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        backends = torch.backends.cuda.matmul, torch.backends.cudnn
        before = [backend.allow_tf32 for backend in backends]
        try:
            for backend in backends:
                backend.allow_tf32 = False
            yield
        finally:
            for backend, allowed in zip(backends, before):
                backend.allow_tf32 = allowed


def check_same_extractor(found: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """
    Raises:
        `ValueError`: if features of these two identities cannot be compared. Names and paths may differ.
    """
    one, other = _flat(found), _flat(wanted)
    differs = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
    if differs:
        listed = ", ".join(f"{name} ({_short(one.get(name))}, not {_short(other.get(name))})" for name in differs)
        raise ValueError(
            f"{what} is of another extractor: {found.get('name')!r}, not {wanted.get('name')!r}; different: {listed}. "
            "Compute it again with the same extractor."
        )


def _flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name != "name":
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
