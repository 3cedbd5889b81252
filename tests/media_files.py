"""Tiny encoded videos and images, whole and damaged, and data sets of them in the three layouts."""

import io
import json
import tarfile
import tempfile
from pathlib import Path

import av
import numpy as np
from PIL import Image


def encode_video(
    num_frames: int = 16,
    fps: int = 8,
    height: int = 32,
    width: int = 32,
    shade: int = 0,
    form: str = "mp4",
    gop: int = 4,
    faststart: bool = False,
    rotation: int = 0,
    noise: bool = False,
) -> bytes:
    """A grey video whose brightness tells the frame: `shade + 8 * number`; `noise` makes its files bigger."""
    options = {"movflags": "faststart"} if faststart else {}  # the header in front; it needs a real file
    file = tempfile.NamedTemporaryFile(suffix=f".{form}")
    with file, av.open(file.name, "w", format=form, options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "4", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(num_frames):
            pixels = np.full((height, width, 3), (shade + 8 * number) % 256, np.uint8)
            if noise:
                pixels[height // 2 :] = np.random.default_rng(number).integers(
                    256, size=(height - height // 2, width, 3)
                )
            if rotation:
                pixels[: height // 2, : width // 2] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
        container.close()
        return Path(file.name).read_bytes()


def encode_image(size: tuple[int, int] = (16, 16), color: str = "red", form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, format=form)
    return file.getvalue()


def encode_sound() -> bytes:
    """A container without a video stream."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return file.getvalue()


def write_folder(folder: Path, rows: list, files: dict[str, bytes]) -> Path:
    """A folder with `metadata.jsonl`; a row that is a string is written as it is."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def numbered_folder(folder: Path, count: int, **video) -> Path:
    """`count` good clips, each of its own shade, which its caption tells."""
    rows = [{"video": f"{number}.mp4", "caption": f"clip {number}"} for number in range(count)]
    files = {f"{number}.mp4": encode_video(shade=4 * number, **video) for number in range(count)}
    return write_folder(folder, rows, files)


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
