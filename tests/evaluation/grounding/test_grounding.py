"""The grounding evaluation on the small emoji world: real clips, wrong videos, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vimi_diffusers.emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer, RenderBatch
from vimi_diffusers.emoji_world.samples import EmojiWorldDataset
from vimi_diffusers.evaluation.grounding import (
    ColourFeatures,
    GroundingSample,
    crop_on_white,
    evaluate_grounding,
    flicker,
    held_out_references,
    place_views,
)
from vimi_diffusers.evaluation.grounding.intervals import mean, share


@pytest.fixture(scope="module")
def assets(world):
    return EmojiWorldAssets.load(world)


@pytest.fixture(scope="module")
def case(assets):
    """Six real clips and what they should show."""
    samples = list(EmojiWorldDataset(assets.index, "val_concept", {"subject": 1.0}, 3, 6, canonical=True))
    videos = EmojiWorldRenderer(assets).videos(RenderBatch.from_samples(samples, assets.index))
    videos = (videos.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    return [GroundingSample.from_emoji_world(*pair) for pair in zip(samples, videos[:, 0])], videos


@pytest.fixture(scope="module")
def known(assets):
    return {"references": held_out_references(assets), "places": place_views(assets), "extractor": ColourFeatures()}


@pytest.fixture(scope="module")
def result(case, known):
    samples, videos = case
    # Generated: the real clips. Withheld: clips of other samples.
    return evaluate_grounding(samples, videos, real=videos.split(4), withheld=videos.roll(1, 0), batch_size=5, **known)


def test_references_are_all_held_out_concepts(assets, known):
    assert set(known["references"]) == {"1f436", "1f42f"}
    assert all(images.shape == (4, 3, 64, 64) for images in known["references"].values())
    assert list(known["places"]) == list(assets.index.places)
    assert all(views.shape == (24, 3, 64, 64) for views in known["places"].values())


def test_real_clips_reach_the_ceiling(result):
    for name in ("identification_top_1", "place_accuracy", "camera_compliance"):
        assert result["generated"][name]["value"] == 1, name
    assert result["generated"]["first_frame_psnr"]["value"] == 100
    assert result["generated"]["flicker_relative_to_real"]["value"] == pytest.approx(1)
    assert result["extractor"] == "cielab colours" and result["references"] == 2


def test_batches_and_sets_do_not_matter(result):
    real = {**result["generated"]}
    del real["flicker_relative_to_real"]
    assert result["real"] == real


def test_wrong_videos_fall_to_chance(case, result):
    samples, _ = case
    wrong = result["withheld"]
    asked = [sample.move for sample in samples]
    same = np.mean([a == b for a, b in zip(asked, [asked[-1], *asked[:-1]])])
    assert wrong["motion_compliance"]["value"] <= same + 1 / 6
    # the order of the data set alternates between the two concepts
    assert wrong["identification_top_1"]["value"] <= 1 / 6
    assert wrong["place_accuracy"]["value"] < 0.7 and wrong["first_frame_psnr"]["value"] < 30


def test_confusion_counts_add_up(case, result):
    table = result["generated"]["motion_confusion"]
    assert sum(sum(row.values()) for row in table.values()) == 6
    right = sum(table[move][move] for move in table)
    assert result["generated"]["motion_compliance"]["value"] == right / 6


def test_what_is_not_asked_for_is_not_measured():
    result = evaluate_grounding([GroundingSample(camera=0)], torch.full((1, 8, 3, 64, 64), 0.5))
    own = result["generated"]
    assert own["camera_compliance"]["value"] == 1 and own["camera_compliance"]["count"] == 1
    for name in ("identification_top_1", "place_accuracy", "motion_compliance", "first_frame_psnr"):
        assert own[name] == {"value": None, "count": 0, "low": None, "high": None}
    assert result["extractor"] is None and "real" not in result


def test_flicker_counts_what_blinks():
    steady = torch.linspace(0, 1, 8).view(1, 8, 1, 1, 1).expand(1, 8, 3, 64, 64)
    blinking = torch.tensor([0.0, 1.0]).repeat(4).view(1, 8, 1, 1, 1).expand(1, 8, 3, 64, 64)
    assert float(flicker(steady)) == pytest.approx(0, abs=1e-6) and float(flicker(blinking)) == pytest.approx(2)


def test_crops_are_square_around_the_subject():
    alpha = torch.zeros(32, 32)
    alpha[4:8, 10:26] = 1
    crop = crop_on_white(torch.zeros(3, 32, 32), alpha)
    assert crop.shape == (3, 64, 64)
    dark = crop[0] < 0.5
    assert dark.any(0).sum() > 3 * dark.any(1).sum() and not dark[0].any() and not dark[:, 0].any()


def test_intervals_agree_with_known_values():
    wilson = share([True] * 8 + [False] * 2)
    assert (wilson["value"], wilson["count"]) == (0.8, 10)
    assert (wilson["low"], wilson["high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    values = np.random.default_rng(1).normal(3, 1, 400)
    interval = mean(values)
    assert interval["low"] == pytest.approx(values.mean() - 1.96 * 0.05, abs=0.02) and interval == mean(values)
    assert mean([2.0, 4.0], [1.0, 2.0]) == {"value": 2.0, "count": 2, "low": 2.0, "high": 2.0}


def test_unknown_motion_and_camera_are_named():
    with pytest.raises(ValueError, match="Unknown motion 'sideways': choose from still"):
        GroundingSample(move="sideways")
    with pytest.raises(ValueError, match="Unknown camera 2"):
        GroundingSample(camera=2)


def test_bad_input_gets_one_error_before_work(case, known):
    samples, videos = case
    with pytest.raises(ValueError, match="6 samples, but 5 generated videos"):
        evaluate_grounding(samples, videos[:5], **known)
    few = torch.full((1, 8, 3, 64, 64), 0.5)
    with pytest.raises(ValueError, match="2 samples, but 1 generated videos"):
        evaluate_grounding([GroundingSample(camera=0)] * 2, [few])
    with pytest.raises(ValueError, match="1 samples, but more than 1 generated videos"):
        evaluate_grounding([GroundingSample(camera=0)], [few, few])
    with pytest.raises(ValueError, match="images of at least 2, got 1"):
        evaluate_grounding(samples, videos, **{**known, "references": {"1f436": torch.ones(1, 3, 64, 64)}})
    with pytest.raises(ValueError, match="no image of the place 'moon'"):
        evaluate_grounding([replace(samples[0], place="moon")], videos[:1], **known)
    with pytest.raises(ValueError, match="the shapes"):
        evaluate_grounding([GroundingSample(camera=0)] * 2, [few, few[..., :32, :32]])
    with pytest.raises(ValueError, match="first frame has the shape"):
        evaluate_grounding([GroundingSample(first_frame=torch.zeros(3, 32, 32))], few)
    with pytest.raises(ValueError, match="no sample"):
        evaluate_grounding([], videos)


@pytest.mark.slow
def test_estimators_are_right_on_real_clips(assets):
    # The small world's places are plain gradients, on which no pan can be seen: these have a texture.
    noise = torch.rand(len(assets.panoramas), 3, 32, 64, generator=torch.Generator().manual_seed(0))
    texture = torch.nn.functional.interpolate(noise, assets.panoramas.shape[-2:], mode="bilinear")
    textured = replace(assets, panoramas=(texture * 255).byte())
    samples = list(EmojiWorldDataset(assets.index, "val_seen", {"subject": 1.0}, 11, 48, canonical=True))
    videos = EmojiWorldRenderer(textured, size=64).videos(RenderBatch.from_samples(samples, assets.index))
    asked = [replace(GroundingSample.from_emoji_world(sample), concept=None) for sample in samples]
    videos = (videos.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    own = evaluate_grounding(asked, videos, places=place_views(textured))["generated"]
    for name, least in (("motion_compliance", 0.95), ("camera_compliance", 0.95), ("place_accuracy", 0.9)):
        assert own[name]["value"] >= least, (name, own[name], own["motion_confusion"], own["camera_confusion"])
