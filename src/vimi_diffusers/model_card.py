# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The README.md of a pipeline on the Hub: what the model is, how to load it, how it was trained, what it can do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card
from huggingface_hub import ModelCard


FACTS_FILE = "model_card.json"
TAGS = ("diffusers", "vimi", "text-to-video", "image-to-video", "subject-driven-generation", "video-prediction")

_MARK = (
    "<!-- Written by vimi_diffusers, and written anew by a push with new facts. Remove this line to keep edits. -->"
)
_DIFFUSERS_DEFAULT = "has been pushed on the Hub. This model card has been automatically generated."
_SUMMARY = """\
A prompt of text and images becomes a short video that is grounded in those images. The model follows
[VIMI](https://arxiv.org/abs/2407.06304): a multimodal language model reads the prompt, and a diffusion model in the
EDM formulation of [Snap Video](https://arxiv.org/abs/2402.14797) draws the video. It loads with
[diffusers](https://huggingface.co/docs/diffusers) and the package `vimi_diffusers`.
"""
_USE = """\
One model does three tasks:

- **text-to-video**, better with text-image pairs that retrieval finds for the prompt (`context`);
- **subject**: tags `<image_1>`, `<image_2>`, ... in the text stand for the given images;
- **prediction**: the given image is the first frame.

Videos are synthetic: say so where you show them, and ask before you use pictures of people or the work of others.
"""


@dataclass(frozen=True)
class ModelCardFacts:
    """
    What a model card says beyond what stands in the pipeline's files. Text is Markdown.

    Args:
        name (`str`, *optional*): Title. Defaults to the repository's name.
        summary (`str`, *optional*): First paragraph. Defaults to a description of the method.
        license (`str`, *optional*, defaults to `"apache-2.0"`): Identifier of the Hub.
        license_note (`str`, *optional*): What else there is to say about rights.
        language (`list[str]`, *optional*): Codes of the prompts' languages.
        datasets (`list[str]`, *optional*): Data sets on the Hub.
        base_model (`str`, *optional*): Model on the Hub that this one was made from.
        training_data (`str`, *optional*): What the model saw.
        training_config (`dict`, *optional*): Settings of the training, shown as a table.
        evaluation (`dict[str, Any]`, *optional*): Figures by name, shown as a table.
        evaluation_note (`str`, *optional*): How they were measured.
        limitations (`str`, *optional*): What the model cannot do.
    """

    name: str | None = None
    summary: str | None = None
    license: str = "apache-2.0"
    license_note: str | None = None
    language: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    base_model: str | None = None
    training_data: str | None = None
    training_config: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    evaluation_note: str | None = None
    limitations: str | None = None

    @classmethod
    def from_file(cls, path: str | Path) -> "ModelCardFacts":
        """
        Read facts from a JSON file, an object with the names above.

        Raises:
            `ValueError`: if the file is missing, is no JSON object or holds another name.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot read the facts of the model card from {path}: {error}.") from error
        names = [own.name for own in fields(cls)]
        unknown = sorted(set(values) - set(names)) if isinstance(values, dict) else [type(values).__name__]
        if unknown:
            raise ValueError(f"{path} holds {', '.join(unknown)}: a model card knows {', '.join(names)}.")
        return cls(**values)


class ModelCardMixin:
    """
    Gives a pipeline a full model card when it is pushed, by `push_to_hub` or by `save_pretrained(push_to_hub=True)`.

    Facts come from `pipe.card_facts`, or from the file `model_card.json` in the folder that the pipeline was loaded
    from.
    """

    card_facts: ModelCardFacts | None = None

    def _upload_folder(self, working_dir: str | Path, repo_id: str, *args, **kwargs) -> Any:
        # Both ways to push come through here, after diffusers has written its short card or fetched the repository's.
        if not kwargs.get("subfolder"):
            facts, source = self.card_facts, Path(str(self.name_or_path), FACTS_FILE)
            if facts is None and source.is_file():
                facts = ModelCardFacts.from_file(source)
            write_model_card(working_dir, repo_id, facts)
        return super()._upload_folder(working_dir, repo_id, *args, **kwargs)


def write_model_card(folder: str | Path, repo_id: str, facts: ModelCardFacts | None = None) -> None:
    """
    Write the README.md of a saved pipeline.

    A card that someone wrote or edited stays; so does one of this function when there are no new facts.

    Args:
        folder (`str` or `Path`): Folder of the pipeline.
        repo_id (`str`): Name of the repository that the card tells readers to load.
        facts ([`ModelCardFacts`], *optional*): What the files do not say.
    """
    readme = Path(folder, "README.md")
    old = readme.read_text(encoding="utf-8") if readme.is_file() else None
    if old is not None and _DIFFUSERS_DEFAULT not in old and (_MARK not in old or facts is None):
        return
    facts = facts or ModelCardFacts()
    text = f"---\nlibrary_name: diffusers\n---\n\n{_card_text(Path(folder), repo_id, facts)}"
    if old is None:
        card = ModelCard(text)
    else:  # keeps the metadata that is there
        card = load_or_create_model_card(str(readme), is_modular=True, model_description=text, update_model_card=True)
    card.data.license = facts.license
    card.data.pipeline_tag = "text-to-video"
    for name in ("language", "datasets", "base_model"):
        if getattr(facts, name):
            setattr(card.data, name, getattr(facts, name))
    populate_model_card(card, [tag for tag in TAGS if tag not in (card.data.tags or ())]).save(readme)


def _card_text(folder: Path, repo_id: str, facts: ModelCardFacts) -> str:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    missing = "The authors of these weights have not said."
    sections = {
        "Intended use": _USE,
        "How to use": _loading(folder, repo_id, index["_class_name"]),
        "Parts": _parts(folder, index),
        "Training": _join(facts.training_data, _table(facts.training_config, "setting")) or missing,
        "Evaluation": _join(_table(facts.evaluation, "figure"), facts.evaluation_note) or missing,
        "Limitations": facts.limitations or missing,
        "Licence": _join(f"`{facts.license}`", facts.license_note),
        "Citation": _CITATION,
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items())
    return f"{_MARK}\n\n# {facts.name or repo_id.split('/')[-1]}\n\n{(facts.summary or _SUMMARY).strip()}\n\n{body}\n"


def _loading(folder: Path, repo_id: str, class_name: str) -> str:
    text = f"""\
```python
import vimi_diffusers  # first: makes the classes known to diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video

pipe = DiffusionPipeline.from_pretrained("{repo_id}")
video = pipe("A red ball rolls through a park", generator=torch.Generator().manual_seed(0)).frames[0]
export_to_video(video, "ball.mp4", fps=5)
```
"""
    if class_name != "VIMIPipeline":  # takes more than a prompt
        text = f"""\
```python
import vimi_diffusers  # first: makes the classes known to diffusers

pipe = vimi_diffusers.{class_name}.from_pretrained("{repo_id}")
```
"""
    if (folder / "pipeline.py").is_file():
        text += f"""
The repository holds its code as well. Without `vimi_diffusers`, and if you trust that code:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repo_id}", custom_pipeline="pipeline", trust_remote_code=True)
```
"""
    return text


def _parts(folder: Path, index: Mapping[str, Any]) -> str:
    rows = {}
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] is not None:
            size = _num_parameters(folder / name)
            rows[f"`{name}`"] = f"{entry[1]}" + (f", {size / 1e6:,.1f} M parameters" if size else "")
    text = _table(rows, "component", "class")
    config_file = folder / "transformer" / "config.json"
    if config_file.is_file():
        config = json.loads(config_file.read_text(encoding="utf-8"))
        frames, height, width = (config.get(name) for name in ("num_frames", "height", "width"))
        if None not in (frames, height, width):
            text += f"\nThe generator works on {frames} frames of {height} x {width}"
            text += " pixels.\n" if index.get("vae", [None])[0] is None else " in the latent space of the `vae`.\n"
    return text


def _num_parameters(folder: Path) -> int:
    sizes = {}  # by name, so that variants count once
    for file in folder.glob("*.safetensors"):
        with open(file, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                sizes[name] = size
    return sum(sizes.values())


def _join(*paragraphs: str | None) -> str:
    return "\n\n".join(paragraph.strip() for paragraph in paragraphs if paragraph)


def _table(rows: Mapping[str, Any], title: str, title_of_values: str = "value") -> str:
    lines = [(title, title_of_values), ("---", "---"), *rows.items()] if rows else []
    return "".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |\n" for line in lines)


_CITATION = """\
```bibtex
@article{vimi,
  title   = {{VIMI}: Grounding Video Generation through Multi-modal Instruction},
  journal = {arXiv:2407.06304},
  year    = {2024}
}
@article{snapvideo,
  title   = {{Snap Video}: Scaled Spatiotemporal Transformers for Text-to-Video Synthesis},
  journal = {arXiv:2402.14797},
  year    = {2024}
}
```
"""
