# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which subject and which place a video shows: the nearest of all references, the nearest view of all places."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from .geometry import pixel_centres, working_copy


CELLS = 8  # of a picture's side
LIGHTNESS_BINS, COLOUR_BINS = 5, 8
PLACE_FRAMES = (0.0, 0.5, 1.0)  # of the video


class ColourFeatures:
    """
    Features that need no weights: a histogram of CIELAB colours other than white, and a coarse picture.

    Attributes:
        name (`str`): `"cielab colours"`.
    """

    name = "cielab colours"

    def frames(self, videos: torch.Tensor) -> torch.Tensor:
        """Features `(B, T, dimension)` of crops on white `(B, T, 3, H, W)` in [0, 1]."""
        from ..colours import to_lab

        flat = videos.flatten(0, 1).float().cpu()
        lab = torch.from_numpy(to_lab(flat.permute(0, 2, 3, 1).contiguous().numpy())).permute(0, 3, 1, 2) / 100
        shown = (flat.amin(dim=1) < 0.97).float()
        bins = [
            _soft_bins(lab[:, 0].clamp(0, 1), 0, 1, LIGHTNESS_BINS),
            _soft_bins(lab[:, 1].clamp(-0.6, 0.8), -0.6, 0.8, COLOUR_BINS),
            _soft_bins(lab[:, 2].clamp(-0.8, 0.8), -0.8, 0.8, COLOUR_BINS),
        ]
        histogram = torch.einsum("nhwi,nhwj,nhwk,nhw->nijk", *bins, shown).flatten(1)
        histogram = (histogram / shown.sum(dim=(1, 2)).clamp(min=1)[:, None]).sqrt()
        picture = F.adaptive_avg_pool2d(lab, CELLS).flatten(1) * 1.5 / CELLS
        return torch.cat([histogram, picture], dim=1).unflatten(0, videos.shape[:2])


def default_extractor():
    """EfficientNet-Lite0 where its weights are installed, otherwise [`ColourFeatures`]; its `name` says which."""
    from ..metrics import EfficientNetLite0

    try:
        return EfficientNetLite0()
    except ImportError:
        return ColourFeatures()


def _soft_bins(values: torch.Tensor, low: float, high: float, number: int) -> torch.Tensor:
    centres = torch.linspace(low, high, number)
    return (1 - (values[..., None] - centres).abs() * (number - 1) / (high - low)).clamp(min=0)


class SubjectRecognizer:
    """
    Ranks all references by their likeness to a subject: cosine of features less the references' mean, the best of a
    concept's images, mean over the frames in which a subject was found.

    Args:
        references (`Mapping[str, torch.Tensor]`): For each concept crops on white, `(n, 3, 64, 64)`.
        extractor: Its `frames` turns `(B, T, 3, H, W)` into `(B, T, dimension)`.
    """

    def __init__(self, references: Mapping[str, torch.Tensor], extractor):
        self.names, self.extractor = list(references), extractor
        images = torch.cat(list(references.values()))
        features = extractor.frames(images[:, None])[:, 0].cpu()
        self.mean = features.mean(dim=0)
        self.features = F.normalize(features - self.mean, dim=-1)
        self.counts = [len(images) for images in references.values()]

    def ranks(self, crops: torch.Tensor, found: torch.Tensor, concepts: list[str]) -> list[int | None]:
        """
        Args:
            crops (`torch.Tensor` of shape `(B, n, 3, 64, 64)`), found (`torch.Tensor` of shape `(B, n)`):
                Of [`subject_crops`].
            concepts (`list[str]`): What is right.

        Returns:
            `list[int | None]`: 1 for the nearest; a tie counts against it; `None` where no subject was found.
        """
        features = F.normalize(self.extractor.frames(crops).cpu() - self.mean, dim=-1)
        cosines = (features @ self.features.T).split(self.counts, dim=-1)
        likeness = torch.stack([part.amax(dim=-1) for part in cosines], dim=-1)
        likeness = (likeness * found[..., None]).sum(dim=1) / found.sum(dim=1, keepdim=True).clamp(min=1)
        own = torch.tensor([self.names.index(concept) for concept in concepts])
        ranks = (likeness >= likeness.gather(1, own[:, None])).sum(dim=1)
        return [int(rank) if any_found else None for rank, any_found in zip(ranks, found.any(dim=1))]


class PlaceRecognizer:
    """
    Finds the place whose view is nearest to three frames, by the colours of 8x8 cells away from the middle.

    Args:
        places (`Mapping[str, torch.Tensor]`): Views of each place, `(views, 3, H, W)` in [0, 1].
    """

    def __init__(self, places: Mapping[str, torch.Tensor]):
        self.names, self.counts = list(places), [len(views) for views in places.values()]
        self.cells = torch.cat([_cells(working_views(views)) for views in places.values()])
        x, y = (F.adaptive_avg_pool2d(axis[None], CELLS)[0] for axis in pixel_centres(torch.device("cpu")))
        self.weights = (((x - 0.5).abs() > 0.3) | (y < 0.3) | (y > 0.9)).float()

    def __call__(self, videos: torch.Tensor) -> list[str]:
        """Names of the places in `videos` `(B, T, 3, H, W)`."""
        videos = working_copy(videos).cpu()
        shown = videos[:, [round(share * (videos.shape[1] - 1)) for share in PLACE_FRAMES]]
        difference = (_cells(shown.flatten(0, 1))[:, None] - self.cells).abs().mean(dim=2)
        difference = (difference * self.weights).sum(dim=(2, 3)) / self.weights.sum()
        nearest = torch.stack([part.amin(dim=1) for part in difference.split(self.counts, dim=1)], dim=1)
        best = nearest.unflatten(0, shown.shape[:2]).mean(dim=1).argmin(dim=1)
        return [self.names[number] for number in best.tolist()]


def working_views(views: torch.Tensor) -> torch.Tensor:
    """Views `(n, 3, H, W)`, checked."""
    if views.ndim != 4 or views.shape[1] != 3:
        raise ValueError(f"Views of a place must have the shape (n, 3, H, W), got {tuple(views.shape)}.")
    return views.float().cpu()


def _cells(images: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(images, CELLS)
