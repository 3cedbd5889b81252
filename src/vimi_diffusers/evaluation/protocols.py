# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Evaluation protocols: everything that decides a figure, as a YAML file with typed keys."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .emoji_source import EmojiWorldSource
from .sources import CaptionSource, Source, SubjectSource, UCF101Source


CONFIGS = Path(__file__).parent / "configs"
SOURCES = {cls.kind: cls for cls in (UCF101Source, CaptionSource, SubjectSource, EmojiWorldSource)}


@dataclasses.dataclass(frozen=True)
class View:
    """
    A size in which videos are measured.

    Args:
        name (`str`): What it is called in results.
        generated (`list[int]`, *optional*):
            Height and width that generated videos are resized to cover and then cropped to around the centre; `None`
            leaves them as they are.
        real (`list[int]`, *optional*): The same of real videos.
    """

    name: str
    generated: tuple[int, ...] | None = None
    real: tuple[int, ...] | None = None

    def __post_init__(self):
        for key in ("generated", "real"):
            _check_size(getattr(self, key), f"`{key}` of view {self.name!r}")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """
    How the pipeline is called.

    Args:
        num_inference_steps (`int`): Noise levels.
        guidance_scale (`float`, *optional*):
            Weight of words and images together; without it and the other one, what the command line takes: 3, and
            with images 1 for the words and 4 for the images.
        image_guidance_scale (`float`, *optional*): Weight of the images apart from that of the words.
        original_size (`list[int]`, *optional*): Height and width that the generator is told as original resolution.
    """

    num_inference_steps: int
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    original_size: tuple[int, ...] | None = None

    def __post_init__(self):
        _check_positive(self.num_inference_steps, "num_inference_steps")
        _check_size(self.original_size, "`original_size`")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """
    Everything that decides the figures of an evaluation, but for the weights and the user's data.

    Args:
        name (`str`): Short name.
        title (`str`): What it is, in a line.
        description (`str`): Where it is from and what is done.
        source (`dict`): Where prompts and real videos are from: `kind`, and the options of that kind.
        size (`list[int]`): Height and width of generated videos.
        num_frames (`int`): Frames that are generated and measured.
        fps (`float`): Frames per second that the generator is told and files play at.
        sampling (`dict`): See [`Sampling`].
        metrics (`list[str]`): Names in the registry of measures, see `vimi evaluate list`.
        num_samples (`int`, *optional*): Videos in all; `None` takes each of the source's samples once.
        views (`list[dict]`, *optional*): See [`View`]; by default the size that is generated.
        extractors (`dict[str, str]`, *optional*):
            Feature networks by role (`fvd`, `fid`, `inception_score`, `clip`, `dino`, `frames`): the name of a file
            that the user gives (`i3d`, `c3d`), `efficientnet-lite0`, `appearance-motion`, or a name on the Hub.
        retrieved_pairs (`int`, *optional*, defaults to `0`):
            Pairs of each kind that a text-to-video prompt gets from the memory; 0 is text alone.
        seed (`int`, *optional*, defaults to `0`): Of samples and noise.
        own_choices (`list[str]`, *optional*): What the published description leaves open, and what is done here.
        not_comparable_with (`list[str]`, *optional*): Published figures that this protocol's do not compare with.

    Raises:
        `ValueError`: If a value cannot be used.
    """

    name: str
    title: str
    description: str
    source: Source
    size: tuple[int, ...]
    num_frames: int
    fps: float
    sampling: Sampling
    metrics: tuple[str, ...]
    num_samples: int | None = None
    views: tuple[View, ...] = ()
    extractors: dict[str, str] = dataclasses.field(default_factory=dict)
    retrieved_pairs: int = 0
    seed: int = 0
    own_choices: tuple[str, ...] = ()
    not_comparable_with: tuple[str, ...] = ()
    changed: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self):
        from .measures import check_metrics

        _check_size(self.size, "`size`")
        for name in ("num_frames", "fps", "num_samples"):
            _check_positive(getattr(self, name), name)
        for name in ("seed", "retrieved_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if not self.views:
            object.__setattr__(self, "views", (View("x".join(map(str, reversed(self.size)))),))
        names = [view.name for view in self.views]
        if len(set(names)) < len(names):
            raise ValueError(f"Two views have one name: {', '.join(names)}.")
        check_metrics(self)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON values."""
        settings = dataclasses.asdict(self)
        settings["source"] = {"kind": self.source.kind, **settings["source"]}
        del settings["changed"]
        return json.loads(json.dumps(settings))

    @property
    def sha256(self) -> str:
        """Hash of all settings that decide figures, not of the words about them."""
        words = ("title", "description", "own_choices", "not_comparable_with")
        settings = {key: value for key, value in self.to_dict().items() if key not in words}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def replace(self, **changes: Any) -> "Protocol":
        """
        The protocol with other values, which it remembers in `changed`: figures of it are no longer the protocol's.

        Args:
            changes: Values by key, as in YAML; a dotted key such as `sampling.num_inference_steps` is in a section.
        """
        before = self.to_dict()
        settings = json.loads(json.dumps(before))
        for key, value in changes.items():
            section, _, last = key.rpartition(".")
            target = settings
            for part in filter(None, section.split(".")):
                target = target.get(part) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                raise ValueError(f"Protocol {self.name!r} has no section {section!r} to change {key!r} in.")
            target[last] = value
        if "size" in changes and "views" not in changes:
            settings["views"] = []  # they belong to the size
        changed = _from_mapping(Protocol, settings, f"Changed protocol {self.name!r}")
        was, now = _flat(before), _flat(changed.to_dict())
        differences = {
            key: {"protocol": was.get(key), "here": now.get(key)} for key in now | was if was.get(key) != now.get(key)
        }
        object.__setattr__(changed, "changed", {**differences, **self.changed})
        return changed


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.endswith("_prompts"))


def load_protocol(name: str | Path, changes: Mapping[str, Any] | None = None) -> Protocol:
    """
    Reads a protocol.

    Args:
        name (`str` or `Path`): One of [`protocol_names`], or a YAML file.
        changes (`Mapping[str, Any]`, *optional*): As of [`~Protocol.replace`].

    Raises:
        `FileNotFoundError`: If there is no such protocol.
        `ValueError`: If a key is unknown or missing, or a value cannot be used, naming it.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{name}.yaml"
        if str(name) not in protocol_names():
            raise FileNotFoundError(
                f"There is no protocol {str(name)!r}: take one of {', '.join(protocol_names())}, or a .yaml file."
            )
    protocol = _from_mapping(Protocol, read_yaml(path), f"Protocol {path.name}")
    return protocol.replace(**changes) if changes else protocol


def read_yaml(path: str | Path) -> Any:
    """
    A YAML file's content.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If it is no YAML.
    """
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


# ------------------------------------------------------------------ types
def _from_mapping(cls: type, values: Any, where: str) -> Any:
    """An instance of a dataclass from a mapping; what is unknown, missing or of another type is an error."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping of keys and values, got {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    if unknown := [str(key) for key in values if key not in fields]:
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}; there are {', '.join(fields)}.")
    needed = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where}: {', '.join(missing)} must be given.")
    types = get_type_hints(cls)
    typed = {name: _typed(types[name], value, f"{where}, {name}") for name, value in values.items()}
    try:
        return cls(**typed)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _typed(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        return _typed(next(one for one in arguments if one is not NoneType), value, where)
    if kind is Source:
        return _source(value, where)
    if dataclasses.is_dataclass(kind):
        return _from_mapping(kind, value, where)
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_typed(arguments[0], one, f"{where}[{number}]") for number, one in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {_typed(arguments[0], key, where): _typed(arguments[1], one, where) for key, one in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and type(value) is kind:
        return value
    name = "a list" if origin is tuple else "a mapping" if origin is dict else kind.__name__
    raise ValueError(f"{where} must be {name}, got {value!r}.")


def _source(value: Any, where: str) -> Source:
    options = dict(value) if isinstance(value, Mapping) else {}
    kind = options.pop("kind", None)
    if kind not in SOURCES:
        raise ValueError(f"{where}: `kind` must be one of {', '.join(SOURCES)}, got {kind!r}.")
    return _from_mapping(SOURCES[kind], options, where)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _check_size(size: Sequence[int] | None, what: str) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"{what} must be a height and a width, got {list(size)}.")


def _check_positive(value: float | None, name: str) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"`{name}` must be positive, got {value}.")
