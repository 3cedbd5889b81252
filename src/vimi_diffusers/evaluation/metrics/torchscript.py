# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Networks in TorchScript files that the user has, such as the I3D of FVD and the C3D of the video Inception score."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .extractor import FeatureExtractor, check_batch_size, check_videos, exact_inference, file_sha256


class TorchScriptExtractor(FeatureExtractor):
    """
    A network for videos in a TorchScript file. It gets tensors `(B, 3, T, H, W)` and returns `(B, dimension)`.

    Args:
        path (`str` or `Path`): The file. TorchScript can run no Python, but give it files that you trust all the same.
        dimension (`int`): Length of the vectors that it returns.
        value_range (`tuple[float, float]`, *optional*, defaults to `(-1.0, 1.0)`): What [0, 1] becomes.
        size (`tuple[int, int]`, *optional*):
            Height and width to resize frames to, bilinearly; `None` leaves that to the file.
        antialias (`bool`, *optional*, defaults to `True`): Whether resizing low-passes what becomes smaller.
        num_frames (`int`, *optional*): Frames that videos must have; `None` takes any number.
        arguments (`Mapping[str, Any]`, *optional*): Keyword arguments of the file's `forward`.
        output (`str`, *optional*, defaults to `"features"`): `"features"`, `"logits"` or `"probabilities"`.
        name (`str`, *optional*): What it is called; the file's name by default.
        batch_size (`int`, *optional*, defaults to `8`): Videos that go through it together.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: if it is no TorchScript, or (when called) returns something else.
    """

    def __init__(
        self,
        path: str | Path,
        dimension: int,
        value_range: tuple[float, float] = (-1.0, 1.0),
        size: tuple[int, int] | None = None,
        antialias: bool = True,
        num_frames: int | None = None,
        arguments: Mapping[str, Any] | None = None,
        output: str = "features",
        name: str | None = None,
        batch_size: int = 8,
        device: str | torch.device = "cpu",
    ):
        check_batch_size(batch_size)
        self.model = _load(Path(path), device)
        self.value_range, self.size, self.antialias = tuple(map(float, value_range)), size, antialias
        self.num_frames, self.arguments = num_frames, dict(arguments or {})
        self.batch_size, self.device = batch_size, torch.device(device)
        resize = None if size is None else {"size": list(size), "interpolation": "bilinear", "antialias": antialias}
        preprocessing = {"value_range": list(self.value_range), "resize": resize, "num_frames": num_frames}
        identity = {
            "kind": "torchscript",
            "weights_sha256": file_sha256(path),  # the file holds code too
            "preprocessing": {**preprocessing, "arguments": self.arguments},
        }
        super().__init__(name or Path(path).stem, dimension, identity, output)

    @classmethod
    def i3d(cls, path: str | Path, **options: Any) -> "TorchScriptExtractor":
        """
        The `i3d_torchscript.pt` of StyleGAN-V ([Skorokhodov et al., 2021](https://huggingface.co/papers/2112.14683)),
        called as there for FVD: values in [0, 255], resized to 224x224 and rescaled by the file itself (`rescale`,
        `resize`, `return_features`), 400 values before the softmax. Made for 16 frames.
        """
        flags = {"rescale": True, "resize": True, "return_features": True}
        return cls(path, 400, **{"value_range": (0.0, 255.0), "arguments": flags, "name": "i3d", **options})

    @classmethod
    def c3d(cls, path: str | Path, **options: Any) -> "TorchScriptExtractor":
        """
        The `c3d_ucf101.pt` of StyleGAN-V, called as there for the video Inception score: values in [0, 255], resizing
        and mean subtraction by the file itself, probabilities of the 101 classes, 16 frames.
        """
        settings = {"value_range": (0.0, 255.0), "num_frames": 16, "output": "probabilities", "name": "c3d-ucf101"}
        return cls(path, 101, **{**settings, **options})

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        check_videos(videos, self.num_frames)
        with exact_inference(self.device):
            return torch.cat([self._features(part) for part in videos.split(self.batch_size)])

    def _features(self, videos: torch.Tensor) -> torch.Tensor:
        videos = videos.to(self.device, torch.float32)
        if self.size is not None and tuple(videos.shape[-2:]) != tuple(self.size):
            flat = F.interpolate(videos.flatten(0, 1), self.size, mode="bilinear", antialias=self.antialias)
            videos = flat.unflatten(0, videos.shape[:2])
        low, high = self.value_range
        features = self.model(videos.transpose(1, 2).contiguous() * (high - low) + low, **self.arguments)
        if not isinstance(features, torch.Tensor) or features.shape != (len(videos), self.dimension):
            what = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(
                f"{self.name} should return the shape ({len(videos)}, {self.dimension}), it returned {what}: check "
                "`dimension` and `arguments`."
            )
        return features.float()


def _load(path: Path, device: str | torch.device) -> torch.jit.ScriptModule:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the published networks have no other form
            return torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{path} is no TorchScript file: {str(error).splitlines()[0]}") from error
