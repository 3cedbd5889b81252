# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What must not be in a memory, or not be retrieved for a sample: copies of the sample, and evaluation material."""

import hashlib
import io
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..media import load_image
from .hash_tables import MAX_RADIUS, GrowingArray, KeyTable, NearHashTable


REASONS = {
    "same_source": "the same source, such as a video id or an address",
    "same_image": "an image that looks the same",
    "same_text": "the same text",
    "evaluation_prompt": "the text of an evaluation prompt",
    "evaluation_prompt_normalised": "the text of an evaluation prompt but for case, punctuation and spaces",
    "unreadable_image": "an image that cannot be decoded",
}
EXAMPLES = 5  # of each reason, in a report
_ROWS = 256  # hashed and looked up at once
_COLOUR_TOLERANCE = 32  # levels of 255; the hash sees no colour: a red heart and a yellow heart have the same


@dataclass(frozen=True)
class HygieneRules:
    """
    When two rows are taken for one and the same thing. A row is a dictionary with `text`, `image` and further values,
    which may also stand in a dictionary under `metadata`.

    Args:
        source_columns (`tuple[str]`, *optional*, defaults to `("source_id", "video_id", "url")`):
            Values that say where a row comes from. Rows with an equal value of one of them are from one source; a row
            without it is compared by the others.
        image_radius (`int`, *optional*, defaults to `4`):
            Images whose perceptual hashes ([pHash](https://github.com/JohannesBuchner/imagehash), 64 bits) differ in
            at most so many bits, and whose mean colours are alike, are the same image, recoded or resized. At most 7;
            `None` compares no images.
        texts (`bool`, *optional*, defaults to `False`):
            Whether equal texts (by [`normalise_text`]) are the same. Two pictures of "a dog" are not.

    Raises:
        `ValueError`: if the radius is out of range.
    """

    source_columns: tuple[str, ...] = ("source_id", "video_id", "url")
    image_radius: int | None = 4
    texts: bool = False

    def __post_init__(self) -> None:
        if self.image_radius is not None and not 0 <= self.image_radius <= MAX_RADIUS:
            raise ValueError(f"`image_radius` must be 0 to {MAX_RADIUS} bits or None, got {self.image_radius}.")

    def to_dict(self) -> dict:
        """The rules as JSON values."""
        return {**asdict(self), "source_columns": list(self.source_columns)}


@dataclass(frozen=True)
class Fingerprint:
    """
    What rows are compared by; see [`fingerprint`].

    Args:
        sources (`tuple[int]`): A 64-bit hash of each source value, with its column's name.
        text (`int`, *optional*): A 64-bit hash of the normalised text.
        images (`tuple[tuple[int, tuple[int, int, int]]]`): pHash and mean colour of each image.
    """

    sources: tuple[int, ...] = ()
    text: int | None = None
    images: tuple[tuple[int, tuple[int, int, int]], ...] = ()

    def leaks(self, other: "Fingerprint", rules: HygieneRules) -> str | None:
        """The reason, one of [`REASONS`], why the two are the same thing; `None` if they are not."""
        if set(self.sources) & set(other.sources):
            return "same_source"
        for hash_a, colour_a in self.images:
            for hash_b, colour_b in other.images:
                alike = all(abs(a - b) <= _COLOUR_TOLERANCE for a, b in zip(colour_a, colour_b))
                if alike and (hash_a ^ hash_b).bit_count() <= rules.image_radius:
                    return "same_image"
        return "same_text" if self.text is not None and self.text == other.text else None


def fingerprint(row: Mapping[str, Any], rules: HygieneRules) -> Fingerprint:
    """
    Hash what the rules compare of a row.

    Args:
        row (`Mapping`):
            `text`; `image`: encoded `bytes`, a path, a `PIL.Image.Image`, `{"bytes": ..., "path": ...}` as `datasets`
            has it, or a list of them, such as frames.
        rules ([`HygieneRules`]): What is compared.

    Raises:
        `ValueError`: if an image cannot be decoded.
        `ImportError`: if images are compared and `imagehash` is not installed.
    """
    metadata = row.get("metadata") or {}
    values = {name: row.get(name, metadata.get(name)) for name in rules.source_columns}
    sources = (f"{name}\0{str(value).strip()}" for name, value in values.items() if value not in (None, ""))
    images = row.get("image") if rules.image_radius is not None else None
    images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
    return Fingerprint(
        sources=tuple(_hash64(source) for source in sources),
        text=_hash64(normalise_text(row.get("text") or "")) if rules.texts else None,
        images=tuple(_image_hash(image) for image in images),
    )


def normalise_text(text: str) -> str:
    """
    A text as it is compared: Unicode-normalised (NFKC), without case, punctuation and repeated spaces.

    Example:
        ```python
        >>> normalise_text(" A  fox, “running” ")
        'a fox running'
        ```
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_punctuation()).split()) or " ".join(folded.split())


@cache
def _punctuation() -> dict[int, str]:
    """Not symbols: they are all that tells one emoji from another."""
    return {code: " " for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "P"}


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _image_hash(image: Any) -> tuple[int, tuple[int, int, int]]:
    """The pHash of an image and its mean colour."""
    try:
        import imagehash
    except ImportError as error:
        raise ImportError('Comparing images needs imagehash: pip install "vimi_diffusers[retrieval]".') from error
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    try:
        image = load_image(image if isinstance(image, (Image.Image, str, Path)) else Image.open(io.BytesIO(image)))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"Cannot read the image: {error}.") from error
    bits = np.packbits(imagehash.phash(image).hash)
    colour = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    return int.from_bytes(bits.tobytes(), "big"), colour


class LeakIndex:
    """
    Fingerprints of many rows, numbered as they come, and the search for those that are the same thing as another row.
    It takes about 60 bytes a row, and never compares all with all.

    Args:
        rules ([`HygieneRules`]): What is compared.
        rows (`Iterable[Mapping]`, *optional*): The first rows, as [`fingerprint`] takes them. For a memory:
            `({"text": pair.text, "image": pair.image, "metadata": pair.metadata} for pair in memory)`.
    """

    def __init__(self, rules: HygieneRules, rows: Iterable[Mapping[str, Any]] = ()):
        self.rules, self._length = rules, 0
        self._sources, self._texts = KeyTable(), KeyTable()
        self._images = NearHashTable(rules.image_radius or 0)
        self._image_rows, self._colours = GrowingArray(np.int64), GrowingArray(np.int16, (3,))
        for some in _batched(rows):
            self.add([fingerprint(row, rules) for row in some])

    def __len__(self) -> int:
        return self._length

    def add(self, prints: Sequence[Fingerprint]) -> None:
        """Adds the next rows."""
        rows = range(self._length, self._length + len(prints))
        for table, keys in (
            (self._sources, [(key, row) for row, one in zip(rows, prints) for key in one.sources]),
            (self._texts, [(one.text, row) for row, one in zip(rows, prints) if one.text is not None]),
        ):
            table.add(*_columns(keys))
        images = [(image, row) for row, one in zip(rows, prints) for image in one.images]
        hashes, image_rows = _columns([(hash, row) for (hash, _), row in images])
        self._images.add(hashes)
        self._image_rows.append(image_rows)
        self._colours.append(np.array([colour for (_, colour), _ in images], np.int16).reshape(-1, 3))
        self._length += len(prints)

    def find(self, prints: Sequence[Fingerprint]) -> list[dict[int, str]]:
        """
        The rows that are the same thing as each of the given.

        Returns:
            `list[dict[int, str]]`: for each, the numbers of such rows, ascending, with the reason.
        """
        found: list[dict[int, str]] = [{} for _ in prints]
        keys, owners = _columns([(key, owner) for owner, one in enumerate(prints) for key in one.sources])
        self._note(found, owners, *self._sources.find(keys), "same_source")
        images = [(image, owner) for owner, one in enumerate(prints) for image in one.images]
        hashes, owners = _columns([(hash, owner) for (hash, _), owner in images])
        positions, numbers = self._images.find(hashes)
        colours = np.array([colour for (_, colour), _ in images], np.int16).reshape(-1, 3)
        alike = (np.abs(colours[positions] - self._colours.values[numbers]) <= _COLOUR_TOLERANCE).all(axis=1)
        self._note(found, owners, positions[alike], self._image_rows.values[numbers[alike]], "same_image")
        keys, owners = _columns([(one.text, owner) for owner, one in enumerate(prints) if one.text is not None])
        self._note(found, owners, *self._texts.find(keys), "same_text")
        return [dict(sorted(rows.items())) for rows in found]

    def leaks(self, row: Mapping[str, Any]) -> list[int]:
        """
        Numbers of the rows that must not be retrieved for a sample, such as `[memory[n].id for n in leaks]` as
        `exclude` of [`ImageTextMemory.search`].

        Args:
            row (`Mapping`): The sample, as [`fingerprint`] takes it: its caption as `text`, its frames as `image`.
        """
        return list(self.find([fingerprint(row, self.rules)])[0])

    @staticmethod
    def _note(
        found: list[dict[int, str]], owners: np.ndarray, positions: np.ndarray, rows: np.ndarray, reason: str
    ) -> None:
        for owner, row in zip(owners[positions].tolist(), rows.tolist()):
            found[owner].setdefault(row, reason)


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([key for key, _ in pairs], np.uint64), np.array([row for _, row in pairs], np.int64)


class PromptList:
    """
    Evaluation prompts, which neither a training caption nor a retrieved text may repeat.

    Args:
        prompts (`Iterable[str]`): The prompts.
    """

    def __init__(self, prompts: Iterable[str] = ()):
        self._exact = frozenset(prompts)
        self._normalised = frozenset(map(normalise_text, self._exact))

    def __len__(self) -> int:
        return len(self._exact)

    @classmethod
    def from_file(cls, path: str | Path) -> "PromptList":
        """
        Read a file with one prompt a line: as it is, or in a `.jsonl` file as an object with `prompt`, `caption` or
        `text`.

        Raises:
            `FileNotFoundError`: if there is no such file.
            `ValueError`: if a line has no prompt, or the file has none at all.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path} of evaluation prompts.")
        prompts = []
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                prompts.append(_prompt(line, f"{path}, line {number}") if path.suffix == ".jsonl" else line.strip())
        if not prompts:
            raise ValueError(f"{path} has no prompt: write one a line.")
        return cls(prompts)

    def digest(self) -> str:
        """A hash of the list, whatever its order."""
        return hashlib.sha256(json.dumps(sorted(self._exact)).encode()).hexdigest()

    def match(self, text: str) -> str | None:
        """The reason why a text is an evaluation prompt; `None` if it is none."""
        if text in self._exact or text.strip() in self._exact:
            return "evaluation_prompt"
        return (
            "evaluation_prompt_normalised" if self._normalised and normalise_text(text) in self._normalised else None
        )


def _prompt(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}.") from None
    values = [record.get(name) for name in ("prompt", "caption", "text")] if isinstance(record, dict) else [record]
    for value in values:
        if isinstance(value, str) and value.strip():
            return value.strip()
    raise ValueError(f"{where} has no `prompt`, `caption` or `text`.")


@dataclass
class HygieneReport:
    """
    What was dropped and why.

    Args:
        total (`int`): Rows seen.
        counts (`Counter[str]`): Dropped rows by reason: one of [`REASONS`], for rows that repeat an earlier row of the
            same set with `duplicate/` in front, for rows that leak into another set with `leak/`.
        examples (`dict[str, list[dict]]`): The first few of each reason.
    """

    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict]] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """`int`: Rows dropped in all."""
        return sum(self.counts.values())

    def drop(self, reason: str, **example: Any) -> None:
        """Counts a dropped row, and keeps it as an example if there are few."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(
                {name: value[:120] if isinstance(value, str) else value for name, value in example.items()}
            )

    def merge(self, other: "HygieneReport") -> None:
        """Adds what another report counted."""
        self.total += other.total
        self.counts.update(other.counts)
        for reason, examples in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine.extend(examples[: EXAMPLES - len(mine)])

    def to_dict(self) -> dict:
        """The report as JSON values."""
        counts = {reason: self.counts[reason] for reason in sorted(self.counts)}
        examples = {reason: self.examples[reason] for reason in sorted(self.examples)}
        return {"total": self.total, "dropped": self.dropped, "counts": counts, "examples": examples}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HygieneReport":
        """The report that [`~HygieneReport.to_dict`] wrote."""
        return cls(values["total"], Counter(values["counts"]), {**values["examples"]})

    def __str__(self) -> str:
        lines = [f"{self.dropped} of {self.total} dropped"]
        width = max(map(len, self.counts), default=0)
        for reason, count in sorted(self.counts.items()):
            what = REASONS.get(reason.rpartition("/")[2], "")
            lines.append(f"  {reason:{width}}  {count:>9}  {what}".rstrip())
            for example in self.examples[reason]:
                lines.append(f"  {'':{width}}  {'':9}    " + ", ".join(f"{k}: {v!r}" for k, v in example.items()))
        return "\n".join(lines)


class Cleaner:
    """
    Drops rows on their way into a memory: those that repeat an earlier row, those that are the same thing as a row of
    another set (the videos that are trained on, the evaluation's), and evaluation prompts. Rows pass in a stream; the
    first of several that are the same stays, and of each that stays 60 bytes are kept in memory.

    Args:
        rules ([`HygieneRules`], *optional*): When two rows are the same thing.
        against (`Iterable[Mapping]`, *optional*): Rows of the other set, as [`fingerprint`] takes them.
        prompts ([`PromptList`], *optional*): Evaluation prompts.

    Attributes:
        report ([`HygieneReport`]): What has been dropped so far.

    Example:
        ```py
        cleaner = Cleaner(prompts=PromptList.from_file("prompts.txt"))
        memory = ImageTextMemory.create("my_memory", cleaner(rows))
        print(cleaner.report)
        ```
    """

    def __init__(
        self,
        rules: HygieneRules | None = None,
        against: Iterable[Mapping[str, Any]] = (),
        prompts: PromptList | None = None,
    ):
        self.rules = rules or HygieneRules()
        self.prompts = prompts or PromptList()
        self.report = HygieneReport()
        self._other = LeakIndex(self.rules, against)
        self._kept = LeakIndex(self.rules)

    def __call__(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """
        The rows that stay, unchanged and in order.

        Args:
            rows (`Iterable[Mapping]`): With `id`, `text`, `image` and whatever else.
        """
        return chain.from_iterable(map(self._clean, _batched(rows)))

    def _clean(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        hashed = []
        for row in rows:
            self.report.total += 1
            try:
                reason = self.prompts.match(row.get("text") or "")
                hashed += [] if reason else [(row, fingerprint(row, self.rules))]
            except ValueError:
                reason = "unreadable_image"
            if reason:
                self.report.drop(reason, **_named(row))
        prints = [one for _, one in hashed]
        among = LeakIndex(self.rules)  # of this batch: several of its own may be the same
        among.add(prints)
        kept: dict[int, int] = {}  # position in the batch: number among all that were kept
        found = zip(self._other.find(prints), self._kept.find(prints), among.find(prints))
        for position, (others, earlier, same) in enumerate(found):
            here = {kept[number]: reason for number, reason in same.items() if number in kept}
            for scope, numbers in (("leak", others), ("duplicate", earlier | here)):
                if numbers:
                    number, reason = next(iter(numbers.items()))
                    self.report.drop(f"{scope}/{reason}", **_named(hashed[position][0]), of=number)
                    break
            else:
                kept[position] = len(self._kept) + len(kept)
        self._kept.add([prints[position] for position in kept])
        return [hashed[position][0] for position in kept]


def _batched(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    rows = iter(rows)
    while some := list(islice(rows, _ROWS)):
        yield some


def _named(row: Mapping[str, Any]) -> dict[str, str]:
    return {"id": str(row.get("id")), "text": row.get("text") or ""}
