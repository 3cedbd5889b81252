import io
import math

import av
import numpy as np
import pytest
from media_files import encode_image, encode_sound, encode_video
from PIL import Image

from vimi_diffusers.data.decoding import check_whole, probe, probe_image, read_clip, read_image
from vimi_diffusers.data.schema import BadSample, TarMember


def shades(clip):
    return (clip.frames[:, 8, 8, 0].astype(int) / 8).round().astype(int).tolist()


def reason_of(function, *arguments, **options):
    with pytest.raises(BadSample) as caught:
        function(*arguments, **options)
    return caught.value.reason


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("gop", [1, 8, 100])
def test_frames_are_the_nearest_to_each_time_wherever_the_clip_begins(form, gop):
    data = encode_video(num_frames=30, fps=10, form=form, gop=gop)
    info = probe(data)
    assert (info.is_image, info.height, info.width, info.fps) == (False, 32, 32, 10)
    assert info.duration == pytest.approx(2.9, abs=0.02)
    assert check_whole(data) == 30
    assert shades(read_clip(data, 3, 16, 16, start=0.0, step=0.1)) == [0, 1, 2]
    assert shades(read_clip(data, 4, 16, 16, start=1.5, step=0.2)) == [15, 17, 19, 21]
    assert shades(read_clip(data, 3, 16, 16, start=2.04, step=0.43)) == [20, 25, 29]
    assert shades(read_clip(data, 2, 16, 16, start=2.7, step=0.2)) == [27, 29]


def test_a_true_frame_rate_scales_time():
    data = encode_video(num_frames=24, fps=12)
    info = probe(data, fps=24)
    assert info.fps == 24 and info.duration == pytest.approx(23 / 24, abs=1e-3)
    assert shades(read_clip(data, 4, 16, 16, start=0.5, step=1 / 8, fps=24)) == [12, 15, 18, 21]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_videos_are_upright_resized_and_cropped_around_the_centre(rotation):
    data = encode_video(num_frames=2, height=32, width=64, rotation=rotation)
    info = probe(data)
    turned = rotation in (90, 270)
    assert (info.height, info.width) == ((64, 32) if turned else (32, 64))
    clip = read_clip(data, 2, 16, 16, step=0.1)
    assert clip.frames.shape == (2, 16, 16, 3) and clip.frames.dtype == np.uint8
    assert clip.first.size == (32, 32)
    if rotation:  # the bright corner, top left in the file, turns with the frame
        bright = np.asarray(clip.first).mean(-1) > 128
        rows, columns = np.nonzero(bright)
        corner = {90: (True, False), 180: (True, True), 270: (False, True)}[rotation]
        assert (rows.mean() > 16, columns.mean() > 16) == corner
    small = np.asarray(clip.first.resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(small - clip.frames[0]).mean() < 6


def test_an_image_is_a_still_video_of_infinite_frame_rate(tmp_path):
    path = tmp_path / "wide.png"
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    Image.fromarray(pixels).save(path)
    info = probe(path)
    assert (info.is_image, info.height, info.width, info.fps, info.duration) == (True, 20, 60, math.inf, 0)
    clip = read_clip(path, 3, 10, 10)
    assert clip.frames.shape == (3, 10, 10, 3) and clip.frames.min() > 200  # the white middle
    assert clip.first.size == (20, 20)
    tall = read_clip(path, 1, 20, 5).frames
    assert tall.shape == (1, 20, 5, 3)


def test_exif_turns_an_image_and_gifs_are_videos(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert (probe(tmp_path / "turned.jpg").height, probe(tmp_path / "turned.jpg").width) == (40, 20)
    frames = [Image.new("L", (16, 16), shade) for shade in (0, 80, 160, 240)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    info = probe(tmp_path / "a.gif")
    assert not info.is_image and info.fps == pytest.approx(10, rel=0.01)
    assert read_clip(tmp_path / "a.gif", 2, 16, 16, step=0.3).frames[:, 0, 0, 0].tolist() == [0, 240]


def test_a_member_of_an_archive_is_read_alone(tmp_path):
    data = encode_image((6, 4))
    (tmp_path / "x.tar").write_bytes(b"1" * 700 + data + b"2" * 50)
    assert read_image(TarMember(tmp_path / "x.tar", "a.png", 700, len(data))).size == (6, 4)


class TestDamage:
    def test_videos_that_cannot_be_opened(self, tmp_path):
        assert reason_of(probe, tmp_path / "nothing.mp4") == "missing_file"
        assert reason_of(probe, b"") == "zero_frames"
        assert reason_of(probe, b"not a video" * 100) == "unreadable_video"
        assert reason_of(probe, encode_video()[:400]) == "unreadable_video"  # without its header
        assert reason_of(probe, encode_sound()) == "zero_frames"

    def test_a_video_without_frames(self):
        assert reason_of(probe, encode_video(num_frames=0)) == "zero_frames"

    def test_a_video_cut_off_in_the_middle(self):
        whole = encode_video(num_frames=40, fps=8, form="matroska", gop=4)
        cut = whole[: len(whole) * 2 // 3]
        assert probe(cut).duration == pytest.approx(probe(whole).duration)  # the header does not know
        assert shades(read_clip(cut, 2, 16, 16, start=1.0, step=0.25)) == [8, 10]
        assert reason_of(read_clip, cut, 2, 16, 16, start=3.0, step=1.5) in ("truncated", "unreadable_video")
        assert reason_of(check_whole, cut) in ("truncated", "unreadable_video")

    def test_a_header_that_promises_more_than_there_is(self):
        data = encode_video(num_frames=10, fps=10)
        assert reason_of(read_clip, data, 2, 16, 16, start=0.0, step=2.0) == "truncated"
        tail = bytearray(encode_video(num_frames=30, fps=10, form="matroska", gop=1))
        clock = tail.find(b"00:00:03.000000000")
        tail[clock : clock + 8] = b"00:00:09"
        assert reason_of(check_whole, bytes(tail)) == "truncated"

    def test_a_video_with_a_scratched_stream(self):
        data = bytearray(encode_video(num_frames=40, faststart=True))
        start = data.find(b"mdat") + 8
        data[start:] = bytes(len(data) - start)
        assert reason_of(check_whole, bytes(data)) in ("unreadable_video", "zero_frames")
        assert reason_of(probe, bytes(data)) in ("unreadable_video", "zero_frames")

    def test_images(self, tmp_path):
        whole = encode_image((64, 64), form="JPEG")
        assert probe(whole[:-20]).is_image  # a header alone cannot tell
        assert reason_of(read_image, whole[:-20]) == "unreadable_image"
        assert reason_of(read_clip, whole[:-20], 1, 8, 8) == "unreadable_image"
        assert reason_of(check_whole, whole[:-20]) == "unreadable_image"
        assert reason_of(probe_image, b"no image") == "unreadable_image"
        assert reason_of(probe_image, tmp_path / "nothing.png") == "missing_file"
        assert reason_of(read_image, tmp_path / "nothing.png") == "missing_file"


def test_a_video_whose_timestamps_do_not_begin_at_zero():
    source = av.open(io.BytesIO(encode_video(num_frames=20, fps=10, gop=5)))
    out = io.BytesIO()
    with source, av.open(out, "w", format="matroska") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is None:
                continue
            shift = int(7 / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
            container.mux(packet)
    assert shades(read_clip(out.getvalue(), 3, 16, 16, start=0.5, step=0.3)) == [5, 8, 11]
    assert probe(out.getvalue()).duration == pytest.approx(1.9, abs=0.05)
