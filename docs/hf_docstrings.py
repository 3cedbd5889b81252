"""Reads Hugging Face docstrings: references become links, types lose the markup that Google style does not have."""

import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

import griffe


REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\]")
DIRECTIVE = re.compile(r"^::: (\S+)", re.M)
SECTION = re.compile(r"( *)(Args|Attributes|Returns|Raises):$")
PARAMETER = re.compile(r"( *[\w*]+) \((`.*|\[`.*)\):(.*)")  # `name (`int`, *optional*, defaults to `5`): text`
SHARED = re.compile(r"( *)(\w+(?:, \w+)+):(.*)")  # `a, b, c: text that holds for each`
RESULT = re.compile(r"( *)((?:`|\[`).+?):( .*|$)")  # `` `ValueError`: text ``
LITERAL_DEFAULT = re.compile(r", defaults to `[^`]*`")  # the signature shows it


class HuggingFaceDocstrings(griffe.Extension):
    """Links what has a place on an API page; any other name becomes plain code."""

    def __init__(self) -> None:
        pages = Path(__file__).parent.glob("*.md")
        paths = [path for page in pages for path in DIRECTIVE.findall(page.read_text("utf-8"))]
        self.path_of = {path.rpartition(".")[2]: path for path in paths}

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            text = "\n".join(_google_lines(_apart(obj.docstring.value.split("\n"))))
            obj.docstring.value = REFERENCE.sub(self._link, text)

    def _link(self, match: re.Match) -> str:
        short, name = match.groups()
        shown = name.rpartition(".")[2] if short else name
        owner = name.partition(".")[0]  # a method may be inherited and have no place of its own
        return f"[`{shown}`][{self.path_of[owner]}]" if owner in self.path_of else f"`{shown}`"


def _apart(lines: list[str]) -> Iterator[str]:
    """One entry for each of several parameters that share one."""
    while lines:
        line, *lines = lines
        if not (entry := SHARED.fullmatch(line)):
            yield line
            continue
        text = list(takewhile(lambda following: following.startswith(entry[1] + " "), lines))
        lines = lines[len(text) :]
        for name in entry[2].split(", "):
            yield from (f"{entry[1]}{name}:{entry[3]}", *text)


def _google_lines(lines: Iterable[str]) -> Iterator[str]:
    section, indent = None, 0
    for line in lines:
        if header := SECTION.fullmatch(line):
            section, indent = header[2], len(header[1])
        elif line.strip() and len(line) - len(line.lstrip()) == indent + 4:
            if section in ("Args", "Attributes") and (entry := PARAMETER.fullmatch(line)):
                line = f"{entry[1]} ({_plain(entry[2])}):{entry[3]}"
            elif section in ("Returns", "Raises") and (entry := RESULT.fullmatch(line)):
                line = f"{entry[1]}{_plain(entry[2])}:{entry[3]}"
        yield line


def _plain(type_text: str) -> str:
    text = REFERENCE.sub(lambda match: match[2], LITERAL_DEFAULT.sub("", type_text))
    return text.replace("`", "").replace("*optional*", "optional")
