# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures in, videos out: loading images of any kind, writing mp4 files and the strip that explains a video."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .files import replacing


DEFAULT_FPS = 16 / 3  # emoji world: a loop of 3 seconds in 16 frames


def load_image(image: Image.Image | str | Path) -> Image.Image:
    """
    Load an image as RGB, upright, with transparency composited on white.

    Args:
        image (`PIL.Image.Image`, `str` or `Path`):
            An image of any mode, a path, or an `http(s)` URL.

    Returns:
        `PIL.Image.Image`: the image in mode `"RGB"`.

    Raises:
        `ValueError`: if the image cannot be read, naming it.
    """
    if not isinstance(image, (Image.Image, str, Path)):
        raise ValueError(f"An image must be a PIL image, a path or a URL, got {type(image).__name__}.")
    try:
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            from diffusers.utils import load_image as download_image

            return _to_rgb(download_image(image, convert_method=lambda downloaded: downloaded))
        if not isinstance(image, Image.Image):
            with Image.open(image) as opened:
                return _to_rgb(opened)
        return _to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all that Pillow raises
        name = "the given PIL image" if isinstance(image, Image.Image) else repr(str(image))
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise ValueError(f"Cannot read image {name}: {reason}.") from error


def load_images(images: Iterable[Image.Image | str | Path]) -> list[Image.Image]:
    """Load several images, each as [`load_image`] does."""
    return [load_image(image) for image in images]


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        image = Image.fromarray(np.clip(np.asarray(image, dtype=np.float64) / 257, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_uint8(frames: np.ndarray | Sequence[Image.Image]) -> np.ndarray:
    """
    Frames as bytes.

    Args:
        frames (`np.ndarray` or `list[PIL.Image.Image]`):
            `(frames, height, width, 3)`, float in `[0, 1]` or uint8, or PIL images.

    Returns:
        `np.ndarray` of shape `(frames, height, width, 3)` and dtype uint8.

    Raises:
        `ValueError`: if there is no frame or the shape is another one.
    """
    if not isinstance(frames, np.ndarray):
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in frames]) if len(frames) else np.empty(0)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"Frames must have the shape (frames, height, width, 3), got {frames.shape}.")
    if frames.dtype != np.uint8:
        frames = (frames.clip(0, 1) * 255).round().astype(np.uint8)
    return frames


def write_video(
    frames: np.ndarray | Sequence[Image.Image], path: str | Path, fps: float = DEFAULT_FPS, scale: int = 1
) -> None:
    """
    Write an mp4 file (H.264, near lossless), whole or not at all. The same frames give the same bytes.

    Args:
        frames (`np.ndarray` or `list[PIL.Image.Image]`):
            `(frames, height, width, 3)`, float in `[0, 1]` or uint8, or PIL images.
        path (`str` or `Path`):
            The file to write, ending in `.mp4`.
        fps (`float`, *optional*, defaults to `16 / 3`):
            Frames per second.
        scale (`int`, *optional*, defaults to `1`):
            Enlarge every pixel to a square of this many, for viewing.

    Raises:
        `ValueError`: if the frames, `path`, `fps` or `scale` cannot be used.
    """
    import imageio_ffmpeg

    path, frames = Path(path), to_uint8(frames)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"The video file must end in .mp4, got {path.name!r}.")
    if fps <= 0 or scale < 1:
        raise ValueError(f"`fps` must be positive and `scale` at least 1, got {fps} and {scale}.")
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 needs an even width and height, got {width}x{height}: use `scale=2`.")
    with replacing(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            temporary,
            (width, height),
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=1,
            # One thread and no version strings: the bytes depend on the frames alone.
            output_params=["-crf", "10", "-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact"],
        )
        try:
            writer.send(None)
            for frame in frames:
                writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()


def write_strip(
    path: str | Path,
    references: Sequence[tuple[str, Image.Image]],
    frames: np.ndarray | Sequence[Image.Image],
    prompt: str,
    frame_size: int = 128,
    columns: int = 8,
) -> None:
    """
    Write a PNG that shows what a video was grounded in: the prompt, the reference images with their captions, and the
    frames beside them, enlarged without smoothing. The file appears whole or not at all.

    Args:
        path (`str` or `Path`):
            The file to write.
        references (`list[tuple[str, PIL.Image.Image]]`):
            Captions and images, retrieved or given. May be empty.
        frames (`np.ndarray` or `list[PIL.Image.Image]`):
            `(frames, height, width, 3)`, float in `[0, 1]` or uint8, or PIL images.
        prompt (`str`):
            Title of the picture.
        frame_size (`int`, *optional*, defaults to `128`):
            Side of the box, in pixels, that frames are enlarged into by a whole factor.
        columns (`int`, *optional*, defaults to `8`):
            Frames in a row.
    """
    frames = [Image.fromarray(frame) for frame in to_uint8(frames)]
    factor = max(1, frame_size // max(frames[0].size))
    frames = [
        frame.resize((frame.width * factor, frame.height * factor), Image.Resampling.NEAREST) for frame in frames
    ]
    width, height = frames[0].size
    gap, column_width = 8, 192
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)

    cells = [_reference_cell(caption, image, column_width, small) for caption, image in references]
    left = (column_width + gap) * bool(cells)
    shown = min(columns, len(frames))
    grid_width = shown * (width + gap) - gap
    title = wrap_text(prompt, font, left + grid_width)
    top = 2 * gap + 22 * len(title)
    rows = -(-len(frames) // columns)
    body = max(rows * (height + gap), sum(cell.height + gap for cell in cells))

    strip = Image.new("RGB", (left + grid_width + 2 * gap, top + body + gap), "white")
    draw = ImageDraw.Draw(strip)
    for line, text in enumerate(title):
        draw.text((gap, gap + 22 * line), text, fill="black", font=font)
    y = top
    for cell in cells:
        strip.paste(cell, (gap, y))
        y += cell.height + gap
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        strip.paste(frame, (gap + left + column * (width + gap), top + row * (height + gap)))
    with replacing(Path(path)) as temporary:
        strip.save(temporary, format="PNG")


def _reference_cell(caption: str, image: Image.Image, width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    image = _to_rgb(image)
    factor = 128 / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    image = image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)
    lines = wrap_text(caption, font, width)[:3]
    cell = Image.new("RGB", (width, image.height + 4 + 16 * len(lines)), "white")
    cell.paste(image, (0, 0))
    for line, text in enumerate(lines):
        ImageDraw.Draw(cell).text((0, image.height + 4 + 16 * line), text, fill="#444444", font=font)
    return cell


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break text into lines that fit into `width` pixels; a longer word gets a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
