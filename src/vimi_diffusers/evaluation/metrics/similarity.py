# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Cosines between features: CLIPSIM and CLIP-T, CLIP-I and DINO-I, temporal consistency. One value for each video."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def text_similarity(frames: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """
    Mean over frames of the cosine with the caption: CLIPSIM ([Wu et al.,
    2021](https://huggingface.co/papers/2104.14806)), also called CLIP-T. Published values are mostly of CLIP ViT-B/32.

    Args:
        frames (`torch.Tensor` of shape `(B, T, D)`): `extractor.frames(videos)`.
        texts (`torch.Tensor` of shape `(B, D)`): `extractor.texts(captions)` of the same extractor.

    Returns:
        `torch.Tensor` of shape `(B,)`: in [-1, 1]; CLIPSIM is given as it is, not times 100.

    Raises:
        `ValueError`: if shapes do not fit.

    Example:
        >>> clip = TransformersImageExtractor("openai/clip-vit-base-patch32")
        >>> text_similarity(clip.frames(videos), clip.texts(captions))
    """
    _check_frames(frames)
    if texts.shape != (frames.shape[0], frames.shape[2]):
        raise ValueError(
            f"Frames {tuple(frames.shape)} need texts (B, D), one for each video, got {tuple(texts.shape)}."
        )
    return (_unit(frames) * _unit(texts.to(frames.device))[:, None]).sum(dim=2).mean(dim=1)


def reference_similarity(frames: torch.Tensor, references: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Subject fidelity: mean cosine of all pairs of a frame and a reference image. CLIP-I with features of CLIP, DINO-I
    with those of DINO ViT-S/16 ([Ruiz et al., 2022](https://huggingface.co/papers/2208.12242)).

    Args:
        frames (`torch.Tensor` of shape `(B, T, D)`): `extractor.frames(videos)`.
        references (`Sequence[torch.Tensor]`):
            For each video `(R, D)`, `extractor.images(references)`; the number R may differ.

    Returns:
        `torch.Tensor` of shape `(B,)`: in [-1, 1].

    Raises:
        `ValueError`: if shapes do not fit or a video has no reference.
    """
    _check_frames(frames)
    if len(references) != len(frames):
        raise ValueError(f"There are {len(frames)} videos and references for {len(references)}: give each its own.")
    for number, images in enumerate(references):
        if images.ndim != 2 or images.shape[1] != frames.shape[2] or not len(images):
            raise ValueError(
                f"References of a video must have the shape (R, {frames.shape[2]}) with R at least 1, those of video "
                f"{number} have {tuple(images.shape)}."
            )
    # the mean of all pairs is the product of the means
    means = torch.stack([_unit(images.to(frames.device)).mean(dim=0) for images in references])
    return (_unit(frames).mean(dim=1) * means).sum(dim=1)


def temporal_consistency(frames: torch.Tensor) -> torch.Tensor:
    """
    Mean cosine of neighbouring frames' features; a still video has 1, so read it beside a measure of motion.

    Args:
        frames (`torch.Tensor` of shape `(B, T, D)`): `extractor.frames(videos)`, T at least 2.

    Returns:
        `torch.Tensor` of shape `(B,)`: in [-1, 1].

    Raises:
        `ValueError`: if there is only one frame.
    """
    _check_frames(frames)
    if frames.shape[1] < 2:
        raise ValueError("Temporal consistency needs videos of at least 2 frames, got 1.")
    unit = _unit(frames)
    return (unit[:, 1:] * unit[:, :-1]).sum(dim=2).mean(dim=1)


def _check_frames(frames: torch.Tensor) -> None:
    if frames.ndim != 3 or 0 in frames.shape:
        raise ValueError(f"Features of frames must have the shape (B, T, D), got {tuple(frames.shape)}.")


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.double(), dim=-1)
