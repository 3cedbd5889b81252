# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Metrics of videos, in three parts that meet as tensors:

- extractors turn videos `(B, T, 3, H, W)` in [0, 1] into features, and say in their `identity` what they are;
- functions turn features or pixels into one value for each video;
- statistics collect features or values batch by batch, merge over processes (`gather`) and files (`save`, `load`,
  `merge`), and refuse what is of another extractor.

| metric | extractor | from features to the result |
|---|---|---|
| FVD | [`TorchScriptExtractor.i3d`], [`TransformersVideoExtractor`], offline [`AppearanceMotionFeatures`] | [`FeatureStatistics`], [`frechet_distance`] |
| FID | [`EfficientNetLite0`], [`TransformersImageExtractor`] (`frames`) | [`FeatureStatistics`], [`frechet_distance`] |
| Inception score | [`TorchScriptExtractor.c3d`], `EfficientNetLite0("logits")` | [`InceptionStatistics`] |
| CLIPSIM, CLIP-T | [`TransformersImageExtractor`] (`frames`, `texts`) | [`text_similarity`], [`ScalarStatistics`] |
| CLIP-I, DINO-I | [`TransformersImageExtractor`] (`frames`, `images`) | [`reference_similarity`], [`ScalarStatistics`] |
| temporal consistency | any for images (`frames`) | [`temporal_consistency`], [`ScalarStatistics`] |
| dynamic degree | none | [`flow_speeds`], [`is_dynamic`], [`ScalarStatistics`] |
| frame-0 PSNR, SSIM, feature-map distance | none; [`EfficientNetLite0`] | [`psnr`], [`ssim`], [`FeatureMapDistance`], [`ScalarStatistics`] |
"""  # noqa: E501

from .derived import AppearanceMotionFeatures, ProjectedFeatures, default_video_extractor
from .efficientnet import EfficientNetLite0
from .extractor import FeatureExtractor, ImageFeatureExtractor, check_same_extractor
from .frames import FeatureMapDistance, psnr, ssim
from .frechet import frechet_distance
from .inception import InceptionStatistics, inception_score
from .motion import flow_speeds, is_dynamic
from .preprocessing import Preprocessing
from .similarity import reference_similarity, temporal_consistency, text_similarity
from .statistics import FeatureStatistics, ScalarStatistics, Statistics
from .torchscript import TorchScriptExtractor
from .transformers_models import TransformersImageExtractor, TransformersVideoExtractor
from .videos import VideoFiles


__all__ = [
    "AppearanceMotionFeatures",
    "EfficientNetLite0",
    "FeatureExtractor",
    "FeatureMapDistance",
    "FeatureStatistics",
    "ImageFeatureExtractor",
    "InceptionStatistics",
    "Preprocessing",
    "ProjectedFeatures",
    "ScalarStatistics",
    "Statistics",
    "TorchScriptExtractor",
    "TransformersImageExtractor",
    "TransformersVideoExtractor",
    "VideoFiles",
    "check_same_extractor",
    "default_video_extractor",
    "flow_speeds",
    "frechet_distance",
    "inception_score",
    "is_dynamic",
    "psnr",
    "reference_similarity",
    "ssim",
    "temporal_consistency",
    "text_similarity",
]
