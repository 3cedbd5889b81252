# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A pipeline as a folder for others: its weights, a model card and, if wanted, its code for `trust_remote_code`."""

import json
import shutil
from pathlib import Path

import diffusers
import transformers
from huggingface_hub.utils import HFValidationError, validate_repo_id

from . import vimi
from .files import check_new_folder, whole_folder
from .flatten import flatten
from .model_card import FACTS_FILE, ModelCardFacts, write_model_card


_INDEX = "model_index.json"


def export(
    model: str | Path,
    out: str | Path,
    with_code: bool = False,
    facts: ModelCardFacts | None = None,
    repo_id: str | None = None,
    revision: str | None = None,
) -> list[str]:
    """
    Copy a pipeline, bit for bit, into a new folder that can be shared; whole or not at all.

    Args:
        model (`str` or `Path`): Folder of a pipeline, or its name on the Hub.
        out (`str` or `Path`): Folder to make; it must not exist, or be empty.
        with_code (`bool`, *optional*, defaults to `False`):
            Add files of code, so that `DiffusionPipeline.from_pretrained(out, custom_pipeline="pipeline",
            trust_remote_code=True)` works without this package.
        facts ([`ModelCardFacts`], *optional*):
            What the model card says beyond the files. Defaults to `model_card.json` in the folder of the model.
        repo_id (`str`, *optional*):
            Name of the repository that the model card tells readers to load. Defaults to the name of `out`.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Returns:
        `list[str]`: the files, as paths in `out`.

    Raises:
        `ValueError`: if `model` is not a pipeline of this package or `out` is in use.
    """
    out = Path(out)
    check_new_folder(out)
    source = _fetch(model, revision)
    index = _read_index(source)
    if facts is None and (source / FACTS_FILE).is_file():
        facts = ModelCardFacts.from_file(source / FACTS_FILE)
    code = code_files(index) if with_code else {}

    with whole_folder(out) as new:
        shutil.copyfile(source / _INDEX, new / _INDEX)
        for name in _components(index):
            shutil.copytree(source / name, new / name, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        for path, text in code.items():
            (new / path).write_text(text, encoding="utf-8")
        write_model_card(new, repo_id or out.name, facts)
    return sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())


def code_files(index: dict) -> dict[str, str]:
    """
    The code that a saved pipeline needs where this package is missing.

    Args:
        index (`dict`): Content of its `model_index.json`.

    Returns:
        `dict[str, str]`: source by path: `pipeline.py` and `<component>/vimi.py`, each self-contained.
    """
    # The files know each other's classes by their bases only: diffusers loads each as a module of its own.
    kinds = (
        transformers.PreTrainedModel,
        diffusers.ModelMixin,
        diffusers.SchedulerMixin,
        diffusers.guiders.BaseGuidance,
    )
    components = {name: getattr(vimi, entry[1]) for name, entry in _components(index).items() if entry[0] == "vimi"}
    stand_ins = {cls: next(kind for kind in kinds if issubclass(cls, kind)) for cls in components.values()}
    files = {f"{name}/vimi.py": flatten(cls) for name, cls in components.items()}
    return {"pipeline.py": flatten(getattr(vimi, index["_class_name"]), stand_ins), **files}


def _components(index: dict) -> dict[str, list[str]]:
    return {name: entry for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None}


def _check_component(folder: Path, name: str, entry: list[str]) -> None:
    if not name.isidentifier() or not (folder / name).is_dir():
        raise ValueError(f"{folder} lacks the folder {name!r} that its {_INDEX} names: copy it again.")
    if entry[0] == "vimi" and entry[1] not in vimi.__all__:
        raise ValueError(
            f"The component {name!r} in {folder} is of class {entry[1]!r}, which this release of vimi_diffusers does "
            "not have: install the release that wrote it."
        )


def _fetch(model: str | Path, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model)
    try:
        validate_repo_id(str(model))
    except HFValidationError as error:
        raise ValueError(f"There is no folder {model}, and it is not a name on the Hub such as user/repo.") from error
    try:
        return Path(diffusers.DiffusionPipeline.download(str(model), revision=revision))
    except OSError as error:  # diffusers leaves the reason to the traceback
        raise ValueError(f"Cannot download {model} from the Hub: {error.__cause__ or error}") from error


def _read_index(folder: Path) -> dict:
    file = folder / _INDEX
    if not file.is_file():
        raise ValueError(f"{folder} has no {_INDEX}: pass the folder of a saved pipeline.")
    index = json.loads(file.read_text(encoding="utf-8"))
    name = index.get("_class_name")
    cls = getattr(vimi, name) if isinstance(name, str) and name in vimi.__all__ else None
    if cls is None or not issubclass(cls, diffusers.DiffusionPipeline):
        raise ValueError(f"{file} is of class {name!r}, which is not a pipeline of vimi_diffusers.")
    cls.extract_init_dict(index)  # raises for a version that this release cannot read
    for component, entry in _components(index).items():
        _check_component(folder, component, entry)
    return index
