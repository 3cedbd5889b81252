# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi generate`: from a prompt, with or without images, to an mp4 file and a picture that explains it."""

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer


if TYPE_CHECKING:
    from ..retrieval import ImageTextPair
    from ..vimi import VIMIPipeline


class DType(str, Enum):
    """Precisions that weights can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def generate(
    prompt: Annotated[str, typer.Argument(help="What to show; <image_1>, <image_2>, ... stand for the images.")],
    out: Annotated[Path, typer.Option(help="The .mp4 file to write; a .png beside it shows images and frames.")],
    image: Annotated[
        Optional[list[str]], typer.Option(help="Path or URL of an image; repeat it for several.", show_default=False)
    ] = None,
    task: Annotated[
        Optional[str],
        typer.Option(
            help="text-to-video, subject or prediction (continue the image).", show_default="subject if there are tags"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.", min=0)] = 0,
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Folder of a pipeline, or its name on the Hub (user/repo).", show_default="embedded weights"
        ),
    ] = None,
    memory: Annotated[
        Optional[Path], typer.Option(help="Folder of a saved memory.", show_default="embedded memory")
    ] = None,
    no_retrieval: Annotated[bool, typer.Option("--no-retrieval", help="Text alone, without retrieved pairs.")] = False,
    k: Annotated[int, typer.Option("--k", help="Retrieved pairs of each kind.", min=1)] = 1,
    num_frames: Annotated[Optional[int], typer.Option(help="Number of frames.", show_default="the model's")] = None,
    steps: Annotated[Optional[int], typer.Option(help="Denoising steps.", show_default="the pipeline's")] = None,
    guidance_scale: Annotated[
        Optional[float],
        typer.Option(help="Weight of words and images together.", show_default="3, with images 1 and 4 for them"),
    ] = None,
    image_guidance_scale: Annotated[
        Optional[float], typer.Option(help="Weight of the images apart from the words.", show_default=False)
    ] = None,
    fps: Annotated[
        Optional[float], typer.Option(help="Frames per second.", show_default="5.33, the embedded model's")
    ] = None,
    scale: Annotated[int, typer.Option(help="Enlarge the pixels of the mp4 for viewing.", min=1)] = 1,
    device: Annotated[
        Optional[str], typer.Option(help="Where to run, such as cuda or cpu.", show_default="cuda if there is one")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Precision of the weights.")] = DType.float32,
) -> None:
    """Generate a video from a prompt."""
    from ..media import DEFAULT_FPS, load_images, write_strip, write_video
    from ..prompting import check_prompt, infer_task

    strip = _check_out(out)
    fps = DEFAULT_FPS if fps is None else fps
    paths = image or []
    task = infer_task(prompt, len(paths)) if task is None else task
    check_prompt(task, prompt, len(paths))
    images = load_images(paths)
    pairs = _retrieve(prompt, task, memory, no_retrieval, k)

    import torch

    from ..vimi.guidance import default_guidance

    pipe = _load_pipeline(model, device, dtype.value)
    options: dict[str, Any] = {
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "image_guidance_scale": image_guidance_scale,
    }
    if guidance_scale is None and image_guidance_scale is None:
        options |= default_guidance(bool(images or pairs))
    frames = pipe(
        prompt,
        images=images or None,
        task=task,
        context=pairs or None,
        fps=fps,
        generator=torch.Generator().manual_seed(seed),
        **{name: value for name, value in options.items() if value is not None},
    ).frames[0]

    captions = ["first frame"] if task == "prediction" else [f"<image_{n + 1}>" for n in range(len(images))]
    references = [(pair.text, pair.image) for pair in pairs] + list(zip(captions, images))
    write_video(frames, out, fps=fps, scale=scale)
    write_strip(strip, references, frames, prompt)
    height, width = frames.shape[1:3]
    typer.echo(
        f"{out}: {len(frames)} frames of {width}x{height} at {fps:.4g} fps; {strip} shows them with their images"
    )


def _check_out(out: Path) -> Path:
    """The strip's path, if both files can be written."""
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"--out must name an .mp4 file, not {str(out)!r}.")
    if not out.parent.is_dir():
        raise ValueError(f"The folder {str(out.parent)!r} of --out does not exist: make it first.")
    strip = out.with_suffix(".png")
    for path in (out, strip):
        if path.is_dir():
            raise ValueError(f"{str(path)!r} is a folder, a file was to be written there: choose another --out.")
    return strip


def _retrieve(prompt: str, task: str, memory: Path | None, no_retrieval: bool, k: int) -> list["ImageTextPair"]:
    if memory is not None and no_retrieval:
        raise ValueError("--memory and --no-retrieval exclude each other: drop one of them.")
    if task != "text-to-video":
        if memory is not None:
            raise ValueError(f'Task "{task}" retrieves nothing: drop --memory.')
        return []
    if no_retrieval:
        return []
    from rich.console import Console
    from rich.table import Table

    from .. import default_memory_path
    from ..retrieval import ImageTextMemory

    found = ImageTextMemory.load(memory or default_memory_path()).search(prompt, k=k)
    if not found:
        typer.echo(f"No pair of the memory shares a word with {prompt!r}: generating from the text alone.")
        return []
    table = Table("score", "kind", "id", "text", title="Retrieved pairs", title_justify="left")
    for pair in found:
        table.add_row(f"{pair.score:.3f}", pair.kind or "", pair.id, pair.text)
    Console().print(table)
    return found


def _load_pipeline(model: str | None, device: str | None, dtype: str) -> "VIMIPipeline":
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from .. import VIMIPipeline, default_checkpoint

    model = str(default_checkpoint()) if model is None else model
    if Path(model).is_dir():
        if not (Path(model) / "model_index.json").is_file():
            raise ValueError(f"The folder {model!r} holds no pipeline: it has no model_index.json.")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ValueError(f"--model {model!r} is no folder and no name on the Hub (user/repo).")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this machine has no usable CUDA device; use --device cpu.")
    diffusers_logging.disable_progress_bar()  # of loading; sampling has its own
    transformers_logging.disable_progress_bar()
    try:
        return VIMIPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    except RuntimeError as error:  # what torch raises for a device that it does not know
        raise ValueError(f"Cannot run {model!r} on --device {device}: {error}") from error
