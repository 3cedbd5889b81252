import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vimi_diffusers.data.instruct import augmentations
from vimi_diffusers.data.instruct.augmentations import augment
from vimi_diffusers.data.instruct.crops import crop_background, cut_subject, fill_background, fit, on_white


def disc(size=64, radius=20):
    y, x = np.mgrid[:size, :size] + 0.5
    return (x - size / 2) ** 2 + (y - size / 2) ** 2 < radius**2


# ------------------------------------------------------------------ crops
def test_a_subject_stands_alone_in_the_middle_of_a_square():
    mask = np.zeros((50, 80), bool)
    mask[10:20, 30:70] = True
    cut = cut_subject(Image.new("RGB", (80, 50), "red"), mask)
    pixels = np.asarray(cut)
    assert cut.size == (44, 44) and cut.mode == "RGBA"
    expected = np.zeros((44, 44), bool)
    expected[17:27, 2:42] = True
    assert np.array_equal(pixels[..., 3] == 255, expected) and (pixels[expected][:, :3] == (255, 0, 0)).all()
    white = np.asarray(on_white(cut))
    assert (white[~expected] == 255).all() and (white[expected] == (255, 0, 0)).all()


def test_pictures_are_made_smaller_but_never_larger():
    assert fit(Image.new("RGB", (200, 100)), 50).size == (50, 25)
    assert fit(Image.new("RGB", (20, 10)), 50).size == (20, 10)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_background_crop_shows_nothing_of_the_subjects(data):
    height, width = data.draw(st.integers(20, 90)), data.draw(st.integers(20, 90))
    masks = []
    for _ in range(2):
        mask = np.zeros((height, width), bool)
        for _ in range(data.draw(st.integers(0, 3))):
            top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
            mask[top : top + data.draw(st.integers(1, 40)), left : left + data.draw(st.integers(1, 40))] = True
        masks.append(mask)
    shown = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks]
    crop = crop_background(shown, masks)
    if crop is None:
        assert min(mask.mean() for mask in masks) > 0
        return
    assert not np.asarray(crop).any()
    assert crop.width * crop.height >= 0.2 * width * height
    assert max(crop.size) <= 16 / 9 * min(crop.size) + 2


def test_the_largest_free_part_of_all_frames_is_taken():
    left, right = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    left[:, :30], right[:, 60:] = True, True
    numbers = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    crop = crop_background([numbers, numbers], [left, right])
    assert crop.size == (59, 64) and np.asarray(crop)[0].tolist() == list(range(59))  # dilated by one pixel
    assert crop_background([numbers], [np.ones((64, 64), bool)]) is None


def test_a_filled_background_keeps_what_is_known_and_smooths_the_rest():
    ramp = np.tile(np.linspace(0, 255, 64), (64, 1)).round().astype(np.uint8)
    frame = np.stack([ramp, 255 - ramp, np.full_like(ramp, 40)], -1)
    mask, seen = disc(radius=12), frame.copy()
    seen[mask] = (255, 0, 255)
    filled = np.asarray(fill_background([Image.fromarray(seen)], [mask])).astype(int)
    assert np.array_equal(filled[:10], frame[:10])
    assert np.abs(filled - frame).max() < 60 and (filled[mask][:, 2] == 40).all()
    assert fill_background([Image.fromarray(seen)], [disc(radius=40)]) is None


# ------------------------------------------------------------------ augmentations
class Fixed:
    """Draws of a generator: where they lie in their range, by call."""

    def __init__(self, *, flip=0.9, middle=0.5, **shares):
        self.first, self.flip, self.middle, self.shares, self.calls = True, flip, middle, shares, 0

    def random(self):
        if self.first:
            self.first = False
            return self.flip
        self.calls += 1
        name = {1: "left", 2: "top", 3: "smaller", 4: "kernel"}[self.calls]
        return self.shares.get(name, {"smaller": 1.0, "kernel": 0.0}.get(name, 0.5))

    def uniform(self, low, high, size=None):
        name = {
            (-augmentations.SHEAR, 2): "shear", (-augmentations.ROTATION, None): "rotation",
            (augmentations.LEAST_CROP, None): "crop", (-augmentations.JITTER, 5): "jitter",
            (-augmentations.BRIGHTNESS, None): "brightness",
        }[low, size]  # fmt: skip
        value = low + (high - low) * self.shares.get(name, {"crop": 1.0}.get(name, self.middle))
        return value if size is None else np.full(size, value)


def pattern(mode="RGB"):
    pixels = np.random.default_rng(0).integers(60, 200, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(disc().astype(np.uint8) * 255))
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_draws_in_the_middle_of_their_ranges_change_nothing(mode):
    image = pattern(mode)
    same = augment(image, Fixed())
    alpha = np.asarray(image.convert("RGBA"))[..., 3:] > 0
    assert same.mode == mode and same.size == image.size
    assert np.abs((np.asarray(same).astype(int) - np.asarray(image)) * alpha).max() <= 2


def test_each_augmentation_does_what_its_name_says():
    image = pattern()
    pixels = np.asarray(image).astype(int)
    flipped = np.asarray(augment(image, Fixed(flip=0.1))).astype(int)
    assert np.abs(flipped - pixels[:, ::-1]).max() <= 2
    corner = augment(image, Fixed(crop=0.0, left=0.0, top=1.0))
    side = int(64 * 0.67**0.5)
    assert corner.size == (side, side)
    assert np.abs(np.asarray(corner).astype(int) - pixels[64 - side :, :side]).max() <= 40  # on a shifted grid
    bright = np.asarray(augment(image, Fixed(brightness=1.0))).astype(int)
    assert np.abs(bright - (pixels * 1.1).clip(0, 255)).max() <= 3
    grey = Image.new("RGB", (448, 300), "grey")
    assert augment(grey, Fixed(smaller=0.0)).size == (112, 75) and augment(grey, Fixed()).size == (448, 300)


def test_blur_reaches_a_fiftieth_of_the_longer_side():
    image = Image.new("RGB", (400, 400))
    image.putpixel((200, 200), (255, 255, 255))
    values = [np.asarray(augment(image, Fixed(kernel=kernel))).max() for kernel in (0.0, 0.3, 0.6, 0.99)]
    assert values == sorted(values, reverse=True) and values[0] > 250 and values[-1] < 60


def test_a_turned_subject_is_held_whole_and_a_turned_background_has_no_corners():
    square = np.zeros((64, 64, 4), np.uint8)
    square[4:60, 4:60] = 255
    for rotation in (0.0, 1.0):
        turned = augment(Image.fromarray(square), Fixed(rotation=rotation, shear=rotation))
        alpha = np.asarray(turned)[..., 3] / 255
        assert turned.width == turned.height > 64 and abs(alpha.sum() - 56 * 56) < 40
        assert alpha[0].max() == alpha[-1].max() == alpha[:, 0].max() == 0
        background = augment(Image.new("RGB", (90, 50), "white"), Fixed(rotation=rotation, shear=rotation))
        assert np.asarray(background).min() >= 250 and abs(background.width / background.height - 1.8) < 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(16, 300), st.floats(9 / 16, 16 / 9), st.sampled_from(["RGB", "RGBA"]))
def test_any_image_can_be_augmented_and_the_seed_decides(seed, width, aspect, mode):
    height = round(width * aspect)
    image = Image.new(mode, (width, height), "orange")
    first = augment(image, np.random.default_rng(seed))
    again = augment(image, np.random.default_rng(seed))
    assert first.mode == mode and min(first.size) >= 1 and first.tobytes() == again.tobytes()
    if mode == "RGB":
        assert np.asarray(first).reshape(-1, 3).std(0).max() < 3  # no colour but orange


def test_no_colour_bleeds_into_a_subject_from_outside():
    image = pattern("RGBA")
    for seed in range(20):
        changed = np.asarray(augment(image, np.random.default_rng(seed))).astype(int)
        opaque = changed[changed[..., 3] > 200]
        assert opaque[:, :3].min() > 30  # black outside would show as a dark rim
