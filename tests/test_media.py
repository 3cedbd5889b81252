import hashlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from vimi_diffusers import media


def frames_of(count=4, height=16, width=24, seed=0):
    return np.random.default_rng(seed).random((count, height, width, 3), dtype=np.float32)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_video(path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"]
)
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGBA", (5, 4), (255, 255, 255, 255))
    image = (
        image.convert("RGB").convert(mode)
        if mode not in ("PA", "LA", "RGBA", "F")
        else image.convert("L").convert(mode)
    )
    loaded = media.load_image(image)
    assert loaded.mode == "RGB" and loaded.size == (5, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode, tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    image.save(tmp_path / "clear.png", transparency=image.getpixel((0, 0)) if mode == "P" else None)
    assert media.load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    half = media.load_image(Image.new("RGBA", (1, 1), (255, 0, 0, 128)))
    assert half.getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)


def test_sixteen_bit_grey_keeps_its_brightness():
    grey = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert np.asarray(media.load_image(grey))[0, :, 0].tolist() == [0, 128, 255]


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.new("RGB", (6, 3)).save(tmp_path / "turned.jpg", exif=exif)
    assert media.load_image(str(tmp_path / "turned.jpg")).size == (3, 6)


def test_images_come_from_urls():
    buffer = io.BytesIO()
    Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(buffer, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(buffer.getvalue() if self.path == "/a.png" else b"nothing here")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert media.load_image(f"{url}/a.png").getpixel((0, 0)) == (255, 255, 255)
        with pytest.raises(ValueError, match=f"Cannot read image '{url}/b.png'"):
            media.load_image(f"{url}/b.png")
    finally:
        server.shutdown()
        server.server_close()


def test_unreadable_images_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    for name in ("text.png", "cut.png", "missing.png"):
        with pytest.raises(ValueError, match=f"Cannot read image '.*{name}'") as error:
            media.load_images([tmp_path / name])
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no such file"):
        media.load_image(str(tmp_path / "missing.png"))
    with pytest.raises(ValueError, match="got ndarray"):
        media.load_image(np.zeros((2, 2, 3)))


def test_video_has_the_frames_it_was_given(tmp_path):
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    frames[:, :, :24] = (200, 40, 60)
    frames[2:] = frames[2:, :, ::-1]
    media.write_video(frames, tmp_path / "a.mp4", fps=5)
    meta, read = read_video(tmp_path / "a.mp4")
    assert meta["fps"] == 5 and read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < 4


def test_same_frames_give_the_same_bytes(tmp_path):
    frames = frames_of()
    media.write_video(frames, tmp_path / "a.mp4")
    media.write_video([Image.fromarray(frame) for frame in media.to_uint8(frames)], tmp_path / "b.mp4")
    media.write_video(frames_of(seed=1), tmp_path / "c.mp4")
    assert digest(tmp_path / "a.mp4") == digest(tmp_path / "b.mp4") != digest(tmp_path / "c.mp4")


def test_scale_enlarges_pixels(tmp_path):
    media.write_video(frames_of(height=7, width=9), tmp_path / "a.mp4", scale=4)
    assert read_video(tmp_path / "a.mp4")[1].shape[1:3] == (28, 36)


@pytest.mark.parametrize(
    "frames, arguments, message",
    [
        (frames_of(), {"path": "a.avi"}, "must end in .mp4"),
        (frames_of(), {"path": "a.mp4", "fps": 0}, "`fps` must be positive"),
        (frames_of(), {"path": "a.mp4", "scale": 0}, "`scale` at least 1"),
        (frames_of(height=15), {"path": "a.mp4"}, "even width and height, got 24x15"),
        (frames_of()[0], {"path": "a.mp4"}, r"got \(16, 24, 3\)"),
        ([], {"path": "a.mp4"}, "Frames must have the shape"),
    ],
)
def test_videos_that_cannot_be_written(tmp_path, frames, arguments, message):
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        media.write_video(frames, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_text("old")
    monkeypatch.setattr(media.np, "ascontiguousarray", lambda frame: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        media.write_video(frames_of(), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_strip_shows_references_and_every_frame_with_crisp_pixels(tmp_path):
    frames = np.zeros((10, 16, 16, 3), np.uint8)
    frames[..., 0] = np.arange(10)[:, None, None] * 20 + 30  # every frame has a red of its own
    references = [
        ("A sea turtle", Image.new("RGBA", (20, 20), (1, 200, 3, 255))),
        ("A park", Image.new("L", (9, 4), 77)),
    ]
    media.write_strip(tmp_path / "a.png", references, frames, "A sea turtle glides through a park " * 20)
    strip = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    colours, counts = np.unique(strip.reshape(-1, 3), axis=0, return_counts=True)
    area = {tuple(int(c) for c in colour): int(count) for colour, count in zip(colours, counts)}
    for frame in frames:
        assert area[tuple(int(c) for c in frame[0, 0])] == 128 * 128
    assert area[1, 200, 3] == 128 * 128
    assert area[77, 77, 77] >= 128 * 57 - 200
    assert strip.shape[0] > 2 * 128 and strip.shape[1] > 8 * 128


def test_strip_without_references_is_the_same_each_time(tmp_path):
    frames = frames_of(count=3)
    for name in ("a.png", "b.png"):
        media.write_strip(tmp_path / name, [], frames, "A fox")
    assert digest(tmp_path / "a.png") == digest(tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").width < 3 * 128 + 100
