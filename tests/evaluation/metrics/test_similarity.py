import numpy as np
import pytest
import torch
from metric_cases import moving_squares, save_clip

from vimi_diffusers.evaluation.metrics import (
    TransformersImageExtractor,
    reference_similarity,
    temporal_consistency,
    text_similarity,
)


def cosine(one, other):
    one, other = one.numpy().astype(float), other.numpy().astype(float)
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_text_similarity_is_the_mean_cosine_of_frames_and_caption():
    frames, texts = features(3, 5, 8), features(3, 8, seed=1)
    wanted = [np.mean([cosine(frame, text) for frame in video]) for video, text in zip(frames, texts)]
    assert np.allclose(text_similarity(frames, texts), wanted)
    assert np.allclose(text_similarity(7 * frames, texts), wanted)


def test_clipsim_agrees_with_transformers_own_scores(tmp_path):
    extractor = TransformersImageExtractor(save_clip(tmp_path / "clip"))
    videos, captions = moving_squares(2, frames=3), ["a fox", "two dogs"]
    found = text_similarity(extractor.frames(videos), extractor.texts(captions))
    tokens = extractor._tokenizer(captions, padding=True, return_tensors="pt")
    pixels = extractor.preprocessing(videos.flatten(0, 1))
    outputs = extractor.model(tokens.input_ids, pixels, tokens.attention_mask)
    scores = (outputs.logits_per_image / extractor.model.logit_scale.exp()).view(2, 3, 2)
    assert torch.allclose(found.float(), torch.stack([scores[0, :, 0].mean(), scores[1, :, 1].mean()]), atol=1e-5)


def test_reference_similarity_is_the_mean_of_all_pairs():
    frames = features(2, 4, 8)
    references = [features(3, 8, seed=1), features(1, 8, seed=2)]
    wanted = [
        np.mean([cosine(frame, image) for frame in video for image in images])
        for video, images in zip(frames, references)
    ]
    assert np.allclose(reference_similarity(frames, references), wanted)


def test_temporal_consistency_is_the_mean_cosine_of_neighbours():
    frames = features(3, 5, 8)
    wanted = [np.mean([cosine(video[t], video[t + 1]) for t in range(4)]) for video in frames]
    assert np.allclose(temporal_consistency(frames), wanted)
    assert np.allclose(temporal_consistency(frames[:, :1].expand(-1, 5, -1)), 1)


def test_shapes_that_do_not_fit_are_named():
    frames = features(2, 4, 8)
    with pytest.raises(ValueError, match=r"\(2, 4, 8\) need texts \(B, D\).*got \(3, 8\)"):
        text_similarity(frames, features(3, 8))
    with pytest.raises(ValueError, match="2 videos and references for 1"):
        reference_similarity(frames, [features(3, 8)])
    with pytest.raises(ValueError, match=r"those of video 1 have \(0, 8\)"):
        reference_similarity(frames, [features(3, 8), features(0, 8)])
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        temporal_consistency(frames[:, :1])
    with pytest.raises(ValueError, match=r"shape \(B, T, D\), got \(2, 8\)"):
        temporal_consistency(features(2, 8))
