# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The Gradio demo: the three tasks on one page. `vimi demo` and `demo/app.py` both open it."""

import html
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
import torch
from PIL import Image

from . import default_memory_path
from .cli.generate import _load_pipeline
from .media import load_image, write_strip, write_video
from .retrieval import ImageTextMemory
from .vimi import VIMIPipeline
from .vimi.guidance import default_guidance


if TYPE_CHECKING:
    from .retrieval import ImageTextPair

# (text-to-video, the same as a subject prompt). An example is offered if the memory has a subject and a place for it.
EXAMPLES = (
    ("A sea turtle glides through a park", "A <image_1> glides through <image_2>"),
    ("A fox runs across a misty meadow", "A <image_1> runs across <image_2>"),
    ("A rocket rises over a calm sea", "A <image_1> rises over <image_2>"),
    ("A robot moves in a circle in an old laboratory", "A <image_1> moves in a circle in <image_2>"),
)
EXAMPLE_SIZE = 256  # pixels; pictures of a memory can be too small to see
# No font and no script from elsewhere: the page also works without a network.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

Reference = tuple[Image.Image, str]
Result = tuple[str, str, list[Reference]]


class Demo:
    """
    What the buttons of the page do. Each method returns `(video path, strip path, [(reference image, caption), ...])`.

    Args:
        pipeline ([`VIMIPipeline`]):
            The pipeline, on its device.
        memory ([`ImageTextMemory`]):
            Where text-to-video retrieves.
        folder (`str` or `Path`):
            Existing folder for videos, strips and example pictures.
    """

    def __init__(self, pipeline: VIMIPipeline, memory: ImageTextMemory, folder: str | os.PathLike):
        self.pipeline = pipeline
        self.memory = memory
        self.folder = Path(folder)
        pipeline.set_progress_bar_config(disable=True)  # the page shows its own

    def text_to_video(
        self,
        prompt: str,
        num_pairs: int,
        seed: int,
        steps: int,
        guidance: float,
        progress: gr.Progress = gr.Progress(),
    ) -> Result:
        """Retrieve `num_pairs` pairs of each kind for `prompt`, and generate with them as context."""
        with _errors_on_the_page():
            pairs = self.memory.search(prompt, k=int(num_pairs))
            references = [(load_image(pair.image), pair.text) for pair in pairs]
            context = [(text, image) for image, text in references]
            return self._generate(
                prompt, references, progress, seed, steps, guidance, task="text-to-video", context=context
            )

    def subject(
        self,
        prompt: str,
        images: Sequence[tuple[str, str | None]] | None,
        seed: int,
        steps: int,
        guidance: float,
        progress: gr.Progress = gr.Progress(),
    ) -> Result:
        """Generate from a prompt whose tags `<image_1>`, `<image_2>`, ... stand for the files `images`, in order."""
        with _errors_on_the_page():
            loaded = [load_image(path) for path, _ in images or ()]
            references = [(image, f"<image_{number}>") for number, image in enumerate(loaded, start=1)]
            return self._generate(prompt, references, progress, seed, steps, guidance, task="subject", images=loaded)

    def prediction(
        self,
        prompt: str,
        first_frame: str | None,
        seed: int,
        steps: int,
        guidance: float,
        progress: gr.Progress = gr.Progress(),
    ) -> Result:
        """Generate a video that starts with the image file `first_frame`."""
        with _errors_on_the_page():
            images = [] if first_frame is None else [load_image(first_frame)]
            references = [(image, "first frame") for image in images]
            return self._generate(
                prompt, references, progress, seed, steps, guidance, task="prediction", images=images
            )

    def _generate(
        self,
        prompt: str,
        references: list[Reference],
        progress: gr.Progress,
        seed: int,
        steps: int,
        guidance: float,
        **inputs: object,
    ) -> Result:
        if not prompt.strip():
            raise ValueError("The prompt is empty: say what the video should show.")
        if seed is None or not 0 <= int(seed) < 2**63:
            raise ValueError(f"The seed must be a whole number, 0 or more, not {seed}.")

        def report(pipe: VIMIPipeline, index: int, timestep: object, values: dict) -> dict:
            progress((index + 1, pipe.num_timesteps), desc="Generating")
            return values

        # of the images where there are any, as in `default_guidance`
        scales = (
            {"guidance_scale": 1.0, "image_guidance_scale": guidance} if references else {"guidance_scale": guidance}
        )
        frames = self.pipeline(
            prompt,
            num_inference_steps=int(steps),
            **scales,
            generator=torch.Generator("cpu").manual_seed(int(seed)),
            callback_on_step_end=report,
            **inputs,
        ).frames[0]
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        video, strip = folder / "video.mp4", folder / "strip.png"
        write_video(frames, video, scale=max(1, 512 // frames.shape[2]))
        write_strip(strip, [(caption, image) for image, caption in references], frames, prompt)
        return str(video), str(strip), references

    def examples(self) -> list[dict[str, object]]:
        """
        The examples that the memory can illustrate.

        Returns:
            `list[dict]`: with `prompt`, and with `tagged_prompt`, `images` (paths) and `first_frame` (a path) of the
            same scene for the other tasks.
        """
        found = []
        for number, (prompt, tagged_prompt) in enumerate(EXAMPLES):
            pairs = {pair.kind: pair for pair in self.memory.search(prompt, k=1)}
            if not {"subject", "place"} <= set(pairs):
                continue
            subject, place = (_enlarged(pairs[kind]) for kind in ("subject", "place"))
            pictures = {"subject": subject, "place": place, "first_frame": _first_frame(subject, place)}
            paths = {name: self.folder / f"example-{number}-{name}.png" for name in pictures}
            for name, picture in pictures.items():
                picture.save(paths[name])
            found.append(
                {
                    "prompt": prompt,
                    "tagged_prompt": tagged_prompt,
                    "images": [str(paths["subject"]), str(paths["place"])],
                    "first_frame": str(paths["first_frame"]),
                }
            )
        return found


@contextmanager
def _errors_on_the_page() -> Iterator[None]:
    """Show the one line of an error that the user can mend. Gradio renders it as HTML, and tags look like HTML."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error


def _enlarged(pair: "ImageTextPair") -> Image.Image:
    """The pair's picture, square, keeping its transparency."""
    image = pair.image.convert("RGBA")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    crop = image.crop((left, top, left + side, top + side))
    return crop.resize((EXAMPLE_SIZE, EXAMPLE_SIZE), Image.Resampling.BICUBIC)


def _first_frame(subject: Image.Image, place: Image.Image) -> Image.Image:
    """The subject in the lower half of the place."""
    side = EXAMPLE_SIZE * 5 // 8
    frame = place.copy()
    frame.alpha_composite(subject.resize((side, side)), ((EXAMPLE_SIZE - side) // 2, EXAMPLE_SIZE - side - 16))
    return frame.convert("RGB")


def load_demo(
    model: str | None = None, memory: str | os.PathLike | None = None, device: str | None = None
) -> gr.Blocks:
    """
    Load a checkpoint and a memory, and build the page around them.

    Args:
        model (`str`, *optional*, defaults to the embedded default):
            Folder of a saved [`VIMIPipeline`], or its name on the Hub (`"user/repo"`).
        memory (`str` or `Path`, *optional*, defaults to the embedded default):
            Folder of a saved [`ImageTextMemory`].
        device (`str`, *optional*):
            Where to run. Defaults to `"cuda"` if there is one, else `"cpu"`.

    Raises:
        `OSError` or `ValueError`: if the checkpoint or the memory cannot be loaded, naming it.
    """
    opened = ImageTextMemory.load(memory or default_memory_path())
    pipeline = _load_pipeline(model, device, "float32")
    return build_demo(pipeline, opened, title=model or "the embedded default")


def build_demo(pipeline: VIMIPipeline, memory: ImageTextMemory, title: str = "VIMI") -> gr.Blocks:
    """
    The page: one tab for each task on the left, video, strip and references on the right.

    Args:
        pipeline ([`VIMIPipeline`]):
            The pipeline, on its device.
        memory ([`ImageTextMemory`]):
            Where text-to-video retrieves.
        title (`str`, *optional*, defaults to `"VIMI"`):
            What the page says the model is.

    Returns:
        `gr.Blocks`: the page; `.launch()` serves it.
    """
    folder = tempfile.TemporaryDirectory(prefix="vimi-demo-")
    demo = Demo(pipeline, memory, folder.name)
    config = pipeline.transformer.config
    settings, outputs = _settings(), _outputs()
    with gr.Blocks(title="VIMI", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        page.vimi_folder = folder  # deleted with the page
        gr.Markdown(
            "# VIMI: grounded video from text and images\n"
            f"Model: {html.escape(title)}, {config.num_frames} frames of {config.width}x{config.height} pixels. "
            f"Memory: {len(memory)} image-text pairs."
        )
        with gr.Row():
            with gr.Column():
                _build_tabs(demo, settings, outputs)
                with gr.Row():
                    for setting in settings:
                        setting.render()
            with gr.Column():
                for output in outputs:
                    output.render()
    return page


def _settings() -> list[gr.components.Component]:
    defaults = {name: value.default for name, value in inspect.signature(VIMIPipeline.__call__).parameters.items()}
    return [
        gr.Number(0, label="Seed", precision=0, minimum=0, scale=2, min_width=90, render=False),
        gr.Slider(
            2, 128, defaults["num_inference_steps"], step=1, label="Steps", scale=3, min_width=140, render=False
        ),
        gr.Slider(
            1,
            10,
            default_guidance(shows_images=True)["image_guidance_scale"],
            step=0.5,
            label="Guidance",
            scale=4,
            min_width=140,
            render=False,
        ),
    ]


def _outputs() -> list[gr.components.Component]:
    return [
        gr.Video(
            label="Video", height=400, autoplay=True, loop=True, interactive=False, elem_id="video", render=False
        ),
        gr.Image(
            label="Frames",
            show_label=False,  # it would cover the strip's title
            type="filepath",
            interactive=False,
            elem_id="strip",
            render=False,
        ),
        gr.Gallery(
            label="What the model saw",
            columns=4,
            height=220,
            object_fit="contain",
            fit_columns=False,
            interactive=False,
            elem_id="seen",
            render=False,
        ),
    ]


def _build_tabs(demo: Demo, settings: list, outputs: list) -> None:
    examples = demo.examples()
    with gr.Tab("Text to video"):
        prompt = gr.Textbox(label="Prompt", placeholder="A sea turtle glides through a park", lines=2)
        num_pairs = gr.Slider(0, 3, 1, step=1, label="Retrieved pairs of each kind")
        _run_button(demo.text_to_video, [prompt, num_pairs, *settings], outputs)
        _examples([[one["prompt"]] for one in examples], [prompt])
    with gr.Tab("Subject"):
        prompt = gr.Textbox(
            label="Prompt",
            info="`<image_1>` stands for the first image, `<image_2>` for the second",
            placeholder="A <image_1> is walking in a <image_2>",
            lines=2,
        )
        images = gr.Gallery(
            label="Images, in the order of their tags",
            type="filepath",
            file_types=["image"],
            columns=4,
            height=200,
            interactive=True,
            elem_id="images",
        )
        _run_button(demo.subject, [prompt, images, *settings], outputs)
        _examples([[one["tagged_prompt"], one["images"]] for one in examples], [prompt, images])
    with gr.Tab("Prediction"):
        prompt = gr.Textbox(label="Prompt", placeholder="A fox runs to the right", lines=2)
        first_frame = gr.Image(
            label="First frame",
            type="filepath",
            image_mode=None,
            height=260,
            sources=["upload", "clipboard"],
            elem_id="first-frame",
        )
        _run_button(demo.prediction, [prompt, first_frame, *settings], outputs)
        _examples([[one["prompt"], one["first_frame"]] for one in examples], [prompt, first_frame])


def _run_button(method: Callable[..., Result], inputs: list, outputs: list) -> None:
    button = gr.Button("Generate", variant="primary", elem_id=f"generate-{method.__name__}")
    # One at a time: the tasks share a pipeline, and its scheduler keeps the state of one run.
    button.click(method, inputs, outputs, api_name=method.__name__, concurrency_limit=1, concurrency_id="pipeline")


def _examples(rows: list[list], inputs: list) -> None:
    if rows:
        gr.Examples(rows, inputs, cache_examples=False)


def launch(page: gr.Blocks, **kwargs: object) -> None:
    """Serve a page of [`build_demo`]; the keyword arguments are those of `gr.Blocks.launch`."""
    page.launch(theme=THEME, show_error=True, footer_links=["api"], **kwargs)
