# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A dataclass as command-line arguments over a YAML file: types checked, help taken from its grouped docstring."""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import yaml


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps at a width that fits the longest names, and leaves a script's own words as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=119)


def read_arguments(cls: type, args: Sequence[str] | None, description: str | None) -> tuple[dict[str, Any], Any]:
    """
    Reads `--config file.yaml` and then the other arguments, which win over the file.

    Args:
        cls (`type`): A dataclass whose docstring documents every field under `> Heading` groups.
        args (`Sequence[str]`, *optional*): The command line; that of the process by default.
        description (`str`, *optional*): First lines of `--help`.

    Returns:
        The given values by field, of the fields' types, and the parser, for errors of the caller.

    Raises:
        FileNotFoundError, ValueError: If the file is not there, no mapping, or has a key that is no argument.
        SystemExit: For an unknown argument.
    """
    fields = {item.name: item for item in dataclasses.fields(cls)}
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--config FILE] [--ARGUMENT VALUE ...]",
        description=description,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of the arguments below.")
    for heading, entries in read_docstring(cls).items():
        group = parser.add_argument_group(heading)
        for name, text in entries.items():
            _add_argument(group, fields[name], text)
    given = vars(parser.parse_args(args))
    path = given.pop("config")
    values = _read_yaml(path) if path else {}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"Unknown keys in {path}: {', '.join(unknown)}.")
    values.update(given)
    return {name: as_type(fields[name], value) for name, value in values.items()}, parser


def read_docstring(cls: type) -> dict[str, dict[str, str]]:
    """The description of each argument of a docstring in the HF dialect, by `> Heading` and name."""
    groups: dict[str, dict[str, str]] = {}
    name = None
    for line in inspect.getdoc(cls).splitlines():
        if line.startswith("> "):
            groups[line[2:]] = {}
        elif found := re.match(r"    (\w+) \(`.*?\): ?(.*)", line):
            name, text = found.groups()
            list(groups.values())[-1][name] = text
        elif line.startswith(" " * 8) and name:
            group = list(groups.values())[-1]
            group[name] = f"{group[name]} {line.strip()}".strip()
    return groups


def as_type(item: dataclasses.Field, value: Any) -> Any:
    """
    Checks a value's type. YAML reads `5e-4` as text, `1` as an integer and `no` as false: that is put right.

    Raises:
        ValueError: If the value is not of the field's type; names both.
    """
    if item.name == "mixed_precision" and value is False:
        value = "no"
    options = get_args(item.type) if isinstance(item.type, UnionType) else (item.type,)
    for option in options:
        with suppress(TypeError, ValueError):
            return _convert(option, value)
    names = " or ".join(map(_type_name, options))
    raise ValueError(f"`{item.name}` must be of type {names}, got {value!r}.")


def _type_name(kind: Any) -> str:
    if kind is NoneType:
        return "null"
    return str(kind).replace("typing.", "") if get_args(kind) else kind.__name__


def _convert(kind: Any, value: Any) -> Any:
    """`value` as `kind`; raises `TypeError` or `ValueError` where it is none."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is list and isinstance(value, list):
        return [_convert(inner[0], each) for each in value]
    if origin is dict and isinstance(value, dict):
        return {_convert(inner[0], key): _convert(inner[1], each) for key, each in value.items()}
    if kind is float and not isinstance(value, bool):
        return float(value)
    if isinstance(value, origin or kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise TypeError


def _add_argument(group: Any, item: dataclasses.Field, text: str) -> None:
    options = set(get_args(item.type)) if isinstance(item.type, UnionType) else {item.type}
    settings: dict[str, Any] = {"type": yaml.safe_load, "metavar": "VALUE"}
    if str in options:  # as it stands: a name such as 2026-01-31 is no date
        settings["type"] = lambda given: None if NoneType in options and given in ("null", "None") else given
    elif options == {bool}:
        settings |= {"nargs": "?", "const": True, "metavar": "true|false"}
    elif lists := [option for option in options if get_origin(option) is list]:
        settings |= {"nargs": "+", "action": _ListAction, "type": str, "strings": get_args(lists[0]) == (str,)}
    settings["help"] = (re.sub(r"\[?`\]?", "", text) + _default(item)).replace("%", "%%")
    group.add_argument(f"--{item.name}", default=argparse.SUPPRESS, **settings)


def _default(item: dataclasses.Field) -> str:
    default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
    return "" if default is dataclasses.MISSING or default in (None, {}, []) else f" Default: {default}."


class _ListAction(argparse.Action):
    """`--names a b`, or one YAML list as in the file: `--names "[a, b]"`, `--names null`."""

    def __init__(self, *args: Any, strings: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.strings = strings

    def __call__(self, parser: Any, namespace: Any, given: list[str], option: str | None = None) -> None:
        if len(given) == 1 and (given[0].startswith("[") or given[0] == "null"):
            values = yaml.safe_load(given[0])
        else:
            values = given if self.strings else [yaml.safe_load(each) for each in given]
        setattr(namespace, self.dest, values)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"No configuration file at {path}.")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of arguments, not a {type(values).__name__}.")
    return values
