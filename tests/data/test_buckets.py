import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimi_diffusers.data import BadSample, Bucket
from vimi_diffusers.data.buckets import choose_bucket
from vimi_diffusers.data.decoding import MediaInfo


def video(seconds=3.0, fps=24.0, height=720, width=1280):
    return MediaInfo(False, height, width, fps, seconds - 1 / fps)


IMAGE = MediaInfo(True, 300, 400, math.inf, 0.0)


def chosen(info, *texts):
    return texts[choose_bucket(info, [Bucket.parse(text) for text in texts])]


def test_reading_and_writing():
    assert Bucket.parse("16x64x96@5.333") == Bucket(16, 64, 96, 5.333)
    assert Bucket.parse("1x64x64") == Bucket(1, 64, 64) and str(Bucket(1, 64, 64)) == "1x64x64"
    assert str(Bucket.parse("16x64x64@24")) == "16x64x64@24"
    for text in ("16x64", "16x64x64@", "axbxc", "0x64x64", "16x64x64@0", "1x64x64@24", "16x64x64@-3", ""):
        with pytest.raises(ValueError, match="bucket"):
            Bucket.parse(text)


def test_rates_and_spans():
    assert Bucket.parse("16x64x64@5").rate(video()) == 5 and Bucket.parse("16x64x64").rate(video()) == 24
    assert Bucket.parse("16x64x64@5").span(video()) == 3
    assert Bucket.parse("16x64x64@5").rate(IMAGE) == math.inf and Bucket.parse("16x64x64@5").span(IMAGE) == 0
    assert Bucket.parse("1x64x64").rate(video()) == math.inf


def test_the_nearest_bucket():
    assert chosen(video(), "16x64x64@8", "16x36x64@8", "16x64x36@8") == "16x36x64@8"
    assert chosen(video(height=1280, width=720), "16x64x64@8", "16x36x64@8", "16x64x36@8") == "16x64x36@8"
    assert (
        chosen(video(seconds=2.9), "16x36x64@24", "16x36x64@8", "16x36x64@6") == "16x36x64@6"
    )  # the longest it fills
    assert chosen(video(seconds=1.5), "16x36x64@24", "16x36x64@8", "16x36x64@12") == "16x36x64@12"
    assert chosen(video(height=100, width=100), "8x64x64", "8x128x128", "8x96x96") == "8x96x96"  # no enlargement
    assert chosen(video(height=32, width=32), "8x64x64", "8x128x128") == "8x64x64"


def test_images_have_their_own_buckets_or_share_those_of_videos():
    assert chosen(IMAGE, "16x48x64@8", "1x64x64", "1x48x64") == "1x48x64"
    assert chosen(IMAGE, "16x64x64@8", "16x48x64@8") == "16x48x64@8"
    assert chosen(video(), "16x64x64@8", "1x36x64") == "16x64x64@8"
    assert chosen(video(seconds=0.1), "1x36x64", "1x64x64") == "1x36x64"


def test_clips_that_fill_no_bucket():
    with pytest.raises(BadSample, match="too_short: 1.00 s long, .* 2.00 s or more"):
        choose_bucket(video(seconds=1.0), [Bucket(16, 64, 64, 8)])
    with pytest.raises(BadSample, match="too_slow: 5 frames per second, .* 24 or more"):
        choose_bucket(video(fps=5), [Bucket(16, 64, 64, 24)])
    # a clip of exactly as many frames at the bucket's rate fits
    assert choose_bucket(video(seconds=16 / 6, fps=6), [Bucket(16, 64, 64, 6)]) == 0
    assert choose_bucket(video(seconds=16 / 23.976, fps=23.976), [Bucket(16, 64, 64, 24)]) == 0


@given(
    seconds=st.floats(0.2, 20), fps=st.floats(5, 60), height=st.integers(16, 2000), width=st.integers(16, 2000),
    frames=st.lists(st.integers(2, 64), min_size=1, max_size=4),
)  # fmt: skip
def test_a_chosen_bucket_can_be_filled_and_order_does_not_matter(seconds, fps, height, width, frames):
    info = video(max(seconds, 1 / fps), fps, height, width)
    buckets = [Bucket(count, 32 * (1 + number), 64, rate) for number, count in enumerate(frames) for rate in (4, None)]
    try:
        bucket = buckets[choose_bucket(info, buckets)]
    except BadSample as bad:
        assert bad.reason in ("too_short", "too_slow")
        assert all(each.span(info) > info.duration for each in buckets if each.fps is None)
        return
    assert bucket.span(info) <= info.duration + 0.5 / fps + 1e-9
    backwards = buckets[::-1]
    assert backwards[choose_bucket(info, backwards)] == bucket
