# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ratings of retrieved pairs by people: a page to rate on, what comes back, and how it goes with other scores."""

import base64
import csv
import dataclasses
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import check_new_folder, replacing, whole_folder
from ..retrieval import ImageTextMemory, ImageTextPair


SCALE = (1, 2, 3, 4, 5)
IMAGE_SIZE = 320
NUM_RESAMPLES = 2_000
_ITEMS, _KEY, _PAGE = "items.csv", "key.csv", "rate.html"
_TEMPLATE = Path(__file__).parents[1] / "assets" / "ratings.html"


@dataclasses.dataclass(frozen=True)
class Item:
    """
    What a rater sees at a time: a prompt and a pair.

    Args:
        id (`str`): Stable name: the same prompt and pair have it in every export.
        prompt_id (`str`): Name of the prompt.
        prompt (`str`): The prompt.
        pair (`str`): Id of the pair in its memory.
        text (`str`): The pair's text.
    """

    id: str
    prompt_id: str
    prompt: str
    pair: str
    text: str


def read_prompts(path: str | Path) -> dict[str, str]:
    """
    The prompts of a CSV file with the columns `prompt_id` and `prompt`.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If a column, an id or a prompt is missing, or an id is there twice.
    """
    prompts = {}
    for where, row in _read_csv(path, ("prompt_id", "prompt")):
        if not row["prompt_id"] or not row["prompt"].strip():
            raise ValueError(f"{where}: the id or the prompt is empty.")
        if row["prompt_id"] in prompts:
            raise ValueError(f"{where}: prompt {row['prompt_id']!r} is there twice.")
        prompts[row["prompt_id"]] = row["prompt"]
    if not prompts:
        raise ValueError(f"{path} has no prompt.")
    return prompts


def export_ratings(
    memory: ImageTextMemory,
    prompts: Mapping[str, str],
    found: Mapping[str, Sequence[Sequence[ImageTextPair]]],
    out: str | Path,
    seed: int = 0,
) -> list[Item]:
    """
    Writes what people need to rate retrieved pairs into a new folder:

    - `rate.html`: a page with all images inside, on which a person rates each pair by keyboard or mouse and downloads
      a CSV of ratings. Its order is random, and nothing on it tells which search found a pair, at which rank;
    - `items.csv` and `images/`: the same items as a table with an empty column `rating`, and their pictures;
    - `key.csv`: each item's pair, which system found it, at which rank and with which score. It is not for raters.

    A pair that several systems found for a prompt is rated once.

    Args:
        memory ([`ImageTextMemory`]): Where the pairs are from.
        prompts (`Mapping[str, str]`): Prompts by id.
        found (`Mapping[str, Sequence[Sequence[ImageTextPair]]]`): By name of a system, the pairs for each prompt.
        out (`str` or `Path`): The folder.
        seed (`int`, *optional*, defaults to `0`): Of the order.

    Raises:
        `ValueError`: If the folder is taken, or nothing was found.
    """
    out = Path(out)
    check_new_folder(out)
    items: dict[str, Item] = {}
    key = []
    for system, of_prompts in found.items():
        for (prompt_id, prompt), pairs in zip(prompts.items(), of_prompts, strict=True):
            for rank, pair in enumerate(pairs, 1):
                item = Item(_item_id(prompt_id, prompt, pair.id), prompt_id, prompt, pair.id, pair.text)
                items.setdefault(item.id, item)
                key.append((item.id, prompt_id, pair.id, system, rank, f"{pair.score:.6f}"))
    if not items:
        raise ValueError("No pair was found for any of the prompts: there is nothing to rate.")
    # The ids are hashes, so sorted by them the order before shuffling tells nothing either.
    ordered = [items[id] for id in sorted(items)]
    ordered = [ordered[number] for number in np.random.default_rng(seed).permutation(len(ordered))]
    with whole_folder(out) as new:
        (new / "images").mkdir()
        shown, rows = [], []
        for item in ordered:
            image = _encoded(memory[item.pair].image)
            (new / "images" / f"{item.id}.webp").write_bytes(image)
            uri = f"data:image/webp;base64,{base64.b64encode(image).decode()}"
            shown.append({"id": item.id, "prompt": item.prompt, "text": item.text, "image": uri})
            rows.append((item.id, item.prompt_id, item.prompt, item.text, f"images/{item.id}.webp", ""))
        _write_csv(new / _ITEMS, ("id", "prompt_id", "prompt", "text", "image", "rating"), rows)
        _write_csv(new / _KEY, ("id", "prompt_id", "pair", "system", "rank", "score"), key)
        (new / _PAGE).write_text(_page(shown), encoding="utf-8")
    return ordered


def _item_id(prompt_id: str, prompt: str, pair: str) -> str:
    return hashlib.sha256(json.dumps([prompt_id, prompt, pair]).encode()).hexdigest()[:12]


def _page(shown: Sequence[Mapping[str, str]]) -> str:
    """The page with its data inside. `<` is escaped, so that no text can end the script it stands in."""
    export = hashlib.sha256(" ".join(item["id"] for item in shown).encode()).hexdigest()[:12]
    data = json.dumps({"export": export, "items": shown}).replace("<", "\\u003c")
    return _TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", data)


def _encoded(image: Image.Image) -> bytes:
    image = image.convert("RGBA")
    scale = min(1.0, IMAGE_SIZE / max(image.size))
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=85)
    return stream.getvalue()


# ---------------------------------------------------------------------- what comes back
def read_ratings(export: str | Path, files: Iterable[str | Path]) -> dict[str, dict[str, int]]:
    """
    Reads ratings of one or several people: files that the page downloads (columns `id`, `rater`, `rating`), or an
    `items.csv` with its column filled in, whose rater is the file's name. Rows with an empty rating are left out.

    Args:
        export (`str` or `Path`): The folder that [`export_ratings`] wrote.
        files (`Iterable[str]` or `Iterable[Path]`): The files.

    Returns:
        `dict[str, dict[str, int]]`: ratings by rater and item.

    Raises:
        `FileNotFoundError`: If a file is missing.
        `ValueError`: If an item is not of this export, a rating not on the scale, or rated twice by one person.
    """
    known = {row["id"] for _, row in _read_csv(Path(export) / _ITEMS, ("id",))}
    ratings: dict[str, dict[str, int]] = defaultdict(dict)
    for file in files:
        for where, row in _read_csv(file, ("id", "rating")):
            rater = row.get("rater") or Path(file).stem
            if not row["rating"].strip():
                continue
            if row["id"] not in known:
                raise ValueError(
                    f"{where}: item {row['id']!r} is not in {export}: these are ratings of another export."
                )
            if row["rating"].strip() not in map(str, SCALE):
                raise ValueError(f"{where}: {row['rating']!r} is not on the scale {SCALE[0]}-{SCALE[-1]}.")
            if row["id"] in ratings[rater]:
                raise ValueError(f"{where}: {rater!r} has rated item {row['id']!r} twice: give each rater a name.")
            ratings[rater][row["id"]] = int(row["rating"])
    if not any(ratings.values()):
        raise ValueError("The files hold no rating.")
    return dict(ratings)


def krippendorff_alpha(ratings: Sequence[Mapping[str, int]]) -> float | None:
    """
    Krippendorff's alpha for ordinal ratings of several raters, who need not have rated everything (Krippendorff,
    *Computing Krippendorff's alpha-reliability*, 2011): 1 is agreement, 0 what chance gives.

    Args:
        ratings (`Sequence[Mapping[str, int]]`): For each rater the ratings by item.

    Returns:
        `float`, or `None` where it is not defined: no item has two ratings, or all ratings are the same.
    """
    by_item = defaultdict(list)
    for own in ratings:
        for item, rating in own.items():
            by_item[item].append(rating)
    by_item = [values for values in by_item.values() if len(values) > 1]
    scale = sorted({value for values in by_item for value in values})
    coincidences = np.zeros((len(scale), len(scale)))
    for values in by_item:
        counts = np.array([values.count(one) for one in scale], dtype=float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(values) - 1)
    totals = coincidences.sum(axis=0)
    # distance of two ranks: all ratings between them, and half of those on them
    middle = np.cumsum(totals) - totals / 2
    distances = (middle[:, None] - middle[None, :]) ** 2
    expected = (np.outer(totals, totals) * distances).sum()
    if expected == 0:
        return None
    return float(1 - (totals.sum() - 1) * (coincidences * distances).sum() / expected)


def correlate_ratings(
    export: str | Path,
    files: Iterable[str | Path],
    scores: str | Path,
    out: str | Path,
    system: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Compares ratings with scores of what was generated, prompt by prompt, and writes `correlation.json` and
    `prompts.csv`. A prompt's rating is the mean over the pairs that the system found for it, of each pair's mean over
    the raters.

    Args:
        export (`str` or `Path`): The folder that [`export_ratings`] wrote.
        files (`Iterable[str]` or `Iterable[Path]`): Ratings, as [`read_ratings`] reads them.
        scores (`str` or `Path`): CSV file with the columns `prompt_id` and `score`.
        out (`str` or `Path`): Folder for the files; made if missing.
        system (`str`, *optional*): Whose pairs the videos were generated with. Needed if the export has several.
        seed (`int`, *optional*, defaults to `0`): Of the bootstrap.

    Returns:
        `dict`: what `correlation.json` holds: Spearman's rho and Kendall's tau-b with 95 % bootstrap intervals over
        the prompts, Krippendorff's alpha (`None` where it is not defined), and counts.

    Raises:
        `FileNotFoundError`: If a file is missing.
        `ValueError`: If a file cannot be used, the system is not in the export, or fewer than three prompts have both
            a rating and a score or all have the same.
    """
    export, out = Path(export), Path(out)
    ratings = read_ratings(export, files)
    of_prompt = _items_of_prompts(export, system)
    generation = _read_scores(scores, set(of_prompt))
    mean = {
        id: float(np.mean([own[id] for own in ratings.values() if id in own])) for id in set().union(*ratings.values())
    }
    rated = {
        prompt: float(np.mean([mean[id] for id in items if id in mean]))
        for prompt, items in of_prompt.items()
        if any(id in mean for id in items)
    }
    shared = [prompt for prompt in rated if prompt in generation]
    if len(shared) < 3:
        raise ValueError(f"Only {len(shared)} prompts have both a rating and a score: 3 are the least to correlate.")
    pairs = np.array([(rated[prompt], generation[prompt]) for prompt in shared])
    for column, what in enumerate(("rating", "score")):
        if np.ptp(pairs[:, column]) == 0:
            raise ValueError(f"All {len(shared)} prompts have the same {what}: there is nothing to correlate.")
    results = {
        "prompts": len(shared),
        "prompts_without_rating": len(set(generation) - set(rated)),
        "prompts_without_score": len(set(rated) - set(generation)),
        "raters": {rater: len(own) for rater, own in ratings.items()},
        "krippendorff_alpha": krippendorff_alpha(list(ratings.values())),
        **correlations(pairs[:, 0], pairs[:, 1], seed),
    }
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "correlation.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with replacing(out / "prompts.csv") as temporary:
        rows = [(prompt, f"{rated[prompt]:.4f}", generation[prompt]) for prompt in shared]
        _write_csv(temporary, ("prompt_id", "rating", "score"), rows)
    return results


def correlations(x: np.ndarray, y: np.ndarray, seed: int = 0) -> dict[str, dict[str, float]]:
    """Spearman's rho and Kendall's tau-b of two series, each with a 95 % percentile bootstrap interval."""
    from scipy import stats

    measures = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}
    rng, resampled = np.random.default_rng(seed), {name: [] for name in measures}
    for _ in range(NUM_RESAMPLES):
        drawn = rng.integers(0, len(x), len(x))
        if np.ptp(x[drawn]) and np.ptp(y[drawn]):  # not defined for a constant
            for name, measure in measures.items():
                resampled[name].append(measure(x[drawn], y[drawn]).statistic)
    results = {}
    for name, measure in measures.items():
        low, high = np.percentile(resampled[name], [2.5, 97.5])
        results[name] = {"value": float(measure(x, y).statistic), "low": float(low), "high": float(high)}
    return results


def _items_of_prompts(export: Path, system: str | None) -> dict[str, list[str]]:
    """The items that a system found for each prompt."""
    rows = [row for _, row in _read_csv(export / _KEY, ("id", "prompt_id", "system"))]
    systems = sorted({row["system"] for row in rows})
    if system is None and len(systems) > 1:
        raise ValueError(f"The export has pairs of {', '.join(systems)}: say whose the videos were generated with.")
    if system is not None and system not in systems:
        raise ValueError(f"The export has no pairs of {system!r}, only of {', '.join(systems)}.")
    items = defaultdict(list)
    for row in rows:
        if system in (None, row["system"]):
            items[row["prompt_id"]].append(row["id"])
    return items


def _read_scores(path: str | Path, prompts: set[str]) -> dict[str, float]:
    scores = {}
    for where, row in _read_csv(path, ("prompt_id", "score")):
        if row["prompt_id"] not in prompts:
            raise ValueError(f"{where}: prompt {row['prompt_id']!r} is not one of the export's.")
        if row["prompt_id"] in scores:
            raise ValueError(f"{where}: prompt {row['prompt_id']!r} is there twice.")
        try:
            scores[row["prompt_id"]] = float(row["score"])
        except ValueError:
            raise ValueError(f"{where}: {row['score']!r} is no number.") from None
        if not np.isfinite(scores[row["prompt_id"]]):
            raise ValueError(f"{where}: {row['score']!r} is no finite number.")
    return scores


def _read_csv(path: str | Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, each with the place it stands at; spreadsheets' byte order mark is skipped."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}: it needs {', '.join(columns)}.")
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    for where, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{where} has {'more' if None in row else 'fewer'} values than columns.")
    return rows


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
