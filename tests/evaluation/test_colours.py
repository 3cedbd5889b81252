import numpy as np
import pytest
from PIL import Image

from vimi_diffusers.emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer, RenderBatch
from vimi_diffusers.emoji_world.samples import EmojiWorldDataset
from vimi_diffusers.evaluation.colours import (
    crossing_samples,
    identify,
    reference_colours,
    subject_colours,
    to_lab,
)


@pytest.fixture(scope="module")
def samples(index):
    return list(EmojiWorldDataset(index, "val_concept", {"subject": 1.0}, length=2, canonical=True))


@pytest.fixture(scope="module")
def assets(index):
    return EmojiWorldAssets.load(index)


def crossing_square(colour, frames=16, size=64, noise=0.0):
    """A square that moves to the right over a place with a pattern."""
    y, x = np.mgrid[:size, :size] / size
    video = np.repeat(np.stack([0.4 + 0.1 * np.sin(20 * x), 0.5 + 0.1 * y, 0.45 + 0 * x], -1)[None], frames, axis=0)
    for number, frame in enumerate(video):
        left = round((0.1 + 0.5 * number / (frames - 1)) * size)
        frame[20:44, left : left + 20] = colour
    return (video + noise * np.random.default_rng(0).standard_normal(video.shape)).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("noise, tolerance", [(0.0, 0.01), (0.06, 0.1)])
def test_a_crossing_subject_is_measured_before_a_pattern(noise, tolerance):
    colours = np.array([[0.9, 0.2, 0.1], [0.1, 0.3, 0.9], [0.95, 0.9, 0.2], [0.05, 0.05, 0.05]])
    measured = subject_colours(np.stack([crossing_square(colour, noise=noise) for colour in colours]))
    assert np.abs(measured - colours).max() < tolerance


def test_a_place_alone_has_no_subject_colour():
    empty = np.repeat(crossing_square((1, 0, 0))[:1] * 0 + 0.5, 16, axis=0)
    assert np.isnan(subject_colours(empty[None])).all()


def test_reference_colours_are_weighted_by_alpha(samples, assets, world):
    for sample, colour in zip(samples, reference_colours(samples, assets), strict=True):
        reference = next(reference for reference in sample.context if reference.role == "subject")
        kind, _, name = reference.image.partition("/")
        name, _, frame = name.partition("@")
        rgba = np.asarray(Image.open(world / kind / f"{name}.webp").convert("RGBA"), dtype=float) / 255
        rgba = rgba[int(frame or 0) * 32 :][:32]
        shown = np.minimum(rgba[..., :3] * reference.brightness, 1)
        assert np.allclose(colour, (shown * rgba[..., 3:]).sum((0, 1)) / rgba[..., 3].sum(), atol=0.01)


def test_true_clips_find_their_references(samples, index, assets):
    crossing = crossing_samples(samples, index)
    videos = EmojiWorldRenderer(assets).videos(RenderBatch.from_samples(crossing, index))
    measured = subject_colours((videos / 2 + 0.5).permute(0, 2, 3, 4, 1).numpy())
    references = reference_colours(crossing, assets)
    assert identify(measured, references)["top_1"] == 1.0
    assert identify(measured[::-1], references)["top_1"] == 0.0
    assert np.linalg.norm(to_lab(measured) - to_lab(references), axis=1).max() < 12


def test_crossing_samples_say_what_they_show(samples, index):
    crossing = crossing_samples(samples, index)
    for sample, original in zip(crossing, samples, strict=True):
        recipe = sample.video.recipe
        assert (recipe.move, recipe.cam, recipe.x, sample.place) == ("right", 0, 0.5, "park")
        assert sample.concept == original.concept and index.concepts[sample.concept].phrase[2:] in sample.caption
        assert "right" in sample.caption and "park" in sample.caption and "camera" not in sample.caption
        assert {reference.role for reference in sample.context} == {"subject", "place"}
        assert sample.prompt.count("<image>") == 2 and sample.context[1].image == "places/park"
    assert len({sample.prompt for sample in crossing}) == 1


def test_identification_counts():
    references = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0.0]])
    assert identify(references, references) == {"top_1": 1.0, "top_5": 1.0, "distance": 0.0, "not_found": 0}
    measured = references.copy()
    measured[0] = np.nan
    measured[1] = references[2]
    shares = identify(measured, references)
    assert shares["top_1"] == round(5 / 7, 4) and shares["not_found"] == 1 and shares["distance"] > 0
    nothing = np.full_like(references, np.nan)
    assert identify(nothing, references) == {"top_1": 0.0, "top_5": 0.0, "distance": None, "not_found": 7}


def test_a_tie_is_no_success():
    references = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1.0]])
    assert identify(references, references)["top_1"] == round(1 / 3, 4)


def test_lab_of_known_colours():
    lab = to_lab(np.array([[[1.0, 1, 1], [1, 0, 0]]]))
    assert np.allclose(lab[0], [[100, 0, 0], [53.24, 80.09, 67.2]], atol=0.1)
