"""Identities, synthetic moving clips and tiny networks for the tests of metrics."""

import string
from pathlib import Path

import torch
import torch.nn.functional as F

from vimi_diffusers.evaluation.metrics import Preprocessing
from vimi_diffusers.evaluation.metrics.efficientnet import _Network
from vimi_diffusers.evaluation.metrics.extractor import ImageFeatureExtractor


def identity(dimension: int, output: str = "features", **other) -> dict:
    return {"name": "test", "output": output, "dimension": dimension, "weights_sha256": "0" * 64, **other}


def moving_squares(count: int, frames: int = 8, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Coloured squares that cross smooth backgrounds, `(count, frames, 3, size, size)`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    videos = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)[:, None].repeat(1, frames, 1, 1, 1)
    colours = torch.rand(count, 3, 1, 1, generator=generator)
    tops = torch.randint(0, size // 2, (count,), generator=generator)
    side, step = size // 3, (size - size // 3) / max(frames - 1, 1)
    for video, colour, top in zip(videos, colours, tops.tolist()):
        for number, frame in enumerate(video):
            left = round(number * step)
            frame[:, top : top + side, left : left + side] = colour
    return (videos * 255).round() / 255


class TinyImageExtractor(ImageFeatureExtractor):
    """Two random convolutions, pooled in quarters, with maps."""

    def __init__(self, dimension: int = 16, size: int = 16, seed: int = 0, name: str = "tiny", **options):
        generator = torch.Generator().manual_seed(seed)
        channels = dimension // 4
        self.first = torch.randn(8, 3, 3, 3, generator=generator) / 27**0.5
        self.second = torch.randn(channels, 8, 3, 3, generator=generator) / 72**0.5
        super().__init__(name, dimension, {"kind": "tiny", "seed": seed}, Preprocessing(size, size), **options)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self._maps(self.preprocessing(images.float()))

    def _maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        first = F.conv2d(pixels, self.first, stride=2, padding=1).relu()
        return [first, F.conv2d(first, self.second, stride=2, padding=1).relu()]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(self._maps(pixels)[-1], 2).flatten(1)


class TinyVideoNetwork(torch.nn.Module):
    """Takes what the I3D of StyleGAN-V takes; means over thirds of time and flags say what it was given."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if rescale:
            x = x * 2 / 255 - 1
        if resize:
            x = F.interpolate(x.flatten(1, 2), size=[8, 8], mode="bilinear").view(x.shape[0], 3, x.shape[2], 8, 8)
        features = F.adaptive_avg_pool3d(x, [4, 1, 1]).flatten(1) * self.scale
        return features if return_features else features.softmax(1)


def save_video_network(path: Path) -> Path:
    torch.jit.script(TinyVideoNetwork()).save(str(path))
    return path


def save_efficientnet(path: Path, seed: int = 0) -> Path:
    """Random weights of EfficientNet-Lite0 under the names of the published ones."""
    torch.manual_seed(seed)
    state = {}
    for name, tensor in _Network().state_dict().items():
        if name.endswith("running_var"):
            tensor = torch.rand_like(tensor) + 0.5
        elif tensor.ndim == 4:  # large enough that the pixels are still felt behind all layers
            tensor = torch.randn_like(tensor) * (2 / tensor[0].numel()) ** 0.5
        *modules, leaf = name.split(".")
        state[".".join(module if module.isdigit() else f"_{module}" for module in modules) + f".{leaf}"] = tensor
    torch.save(state, path)
    return path


_SHARED = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_clip(folder: Path, siglip: bool = False) -> Path:
    """A CLIP or SigLIP that reads letters and pictures of 32x32 pixels."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessorPil,
        SiglipModel,
    )

    signs = ["[PAD]", "[UNK]", "[CLS]", *string.ascii_lowercase, "[SEP]"]
    vocab = {sign: number for number, sign in enumerate(signs)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", len(signs) - 1), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    text = {**_SHARED, "vocab_size": len(signs), "max_position_embeddings": 12, "bos_token_id": 2, "pad_token_id": 0}
    text |= {"eos_token_id": len(signs) - 1, "projection_dim": 12}
    vision = {**_SHARED, "image_size": 32, "patch_size": 16, "projection_dim": 12}
    if siglip:
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval().save_pretrained(folder)
        SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    else:
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        CLIPModel(config).eval().save_pretrained(folder)
        size = {"height": 32, "width": 32}
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """A ViT like that of DINO, without a pooler."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(**_SHARED, image_size=32, patch_size=16)
    ViTModel(config, add_pooling_layer=False).eval().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_videomae(folder: Path, classifier: bool) -> Path:
    """A VideoMAE of 4 frames, with five classes or none."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessorPil, VideoMAEModel

    torch.manual_seed(0)
    config = VideoMAEConfig(**_SHARED, image_size=32, patch_size=16, num_frames=4, tubelet_size=2, num_labels=5)
    model = (VideoMAEForVideoClassification if classifier else VideoMAEModel)(config)
    model.eval().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder
