# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether retrieval finds the right concept and place of emoji world: BM25, dense and hybrid, by the text indexed."""

import csv
import dataclasses
import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..emoji_world.captions import MOVES, canonical_plan, paraphrased_plan
from ..emoji_world.recipes import Draws
from ..emoji_world.world_index import Concept, Place, WorldIndex
from ..files import replacing
from ..retrieval import BM25Field, ImageTextMemory, ImageTextPair, RetrievalRecipe, tokenize
from ..retrieval.bm25.index import BM25Index
from ..retrieval.dense import DenseRetriever
from ..retrieval.encoder import MINILM, Encoder
from ..retrieval.hybrid import HybridRetriever
from ..retrieval.recipe import ENGLISH_STOP_WORDS, MOTION_STOP_WORDS
from ..retrieval.retriever import BM25Retriever, Retriever
from .free_prompts import FREE_PROMPTS


CAPTIONS_PER_CONCEPT = 5
WORDINGS = ("canonical", "paraphrased", "placeless")
SAME_DRAWING = ("fluent3d", "flat")  # styles that show a clip's own drawing
MEASURES = ("subject@1", "subject@4", "place@1")
_FIELDS = {
    "label": (BM25Field("text"),),
    "keywords": (BM25Field("keywords"),),
    "label + keywords": (BM25Field("text"), BM25Field("keywords", 0.2)),
}
_STOP_WORDS = ENGLISH_STOP_WORDS + MOTION_STOP_WORDS
_Z = 1.959964  # 95 %

Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Query:
    """
    A prompt and what it should find.

    Args:
        text (`str`): The prompt.
        concepts (`frozenset[str]`): Concepts that are right as a subject.
        place (`str` or `None`): The place that it names.
        cluster (`str`): Prompts of one cluster are not independent of each other.
        exclude (`tuple[str]`): Ids of pairs that must not be found.
    """

    text: str
    concepts: frozenset[str]
    place: str | None
    cluster: str
    exclude: tuple[str, ...] = ()


def draw_captions(
    concepts: Iterable[Concept], places: Sequence[Place], wording: str
) -> Iterator[tuple[Concept, Place | None, str]]:
    """
    Five captions for each concept, always the same ones, two of three with a camera motion.

    Args:
        concepts (`Iterable[Concept]`): What moves in them.
        places (`Sequence[Place]`): Where.
        wording (`str`): `"canonical"`, `"paraphrased"` as in training, or `"placeless"`: paraphrased without a place.
    """
    for concept in concepts:
        for number in range(CAPTIONS_PER_CONCEPT):
            draws = Draws(f"bench-retrieval:{wording}:{concept.concept}:{number}")
            place, move, cam = draws.choice(places), draws.choice(MOVES), draws.choice((-1, 0, 1))
            if wording == "canonical":
                plan = canonical_plan(draws, move, cam, place.phrase)
            else:
                named = wording == "paraphrased"
                plan = paraphrased_plan(draws, move, cam, place.place, place.phrase, name_place=named)
            yield concept, place if plan.place else None, plan.text(concept.phrase, concept.plural)


def caption_queries(index: WorldIndex, concepts: Iterable[Concept], wording: str, ids: Iterable[str]) -> list[Query]:
    """Captions of concepts as queries; the pairs that show a clip's own drawing are excluded, as in training."""
    ids, queries = frozenset(ids), []
    for concept, place, caption in draw_captions(concepts, list(index.places.values()), wording):
        own = tuple(id for style in SAME_DRAWING if (id := f"{style}/{concept.concept}") in ids)
        right = frozenset([concept.concept])
        queries.append(Query(caption, right, place.place if place else None, concept.concept, own))
    return queries


def free_queries(index: WorldIndex) -> dict[str, list[Query]]:
    """
    The hand-written prompts as queries, every concept of their family being right; and those of them apart that have
    no word in common with the label of a right concept.
    """
    every, other_words = [], []
    for prompt in FREE_PROMPTS:
        right = [concept for concept in index.concepts.values() if concept.key == prompt.key]
        query = Query(prompt.text, frozenset(one.concept for one in right), prompt.place, prompt.text)
        every.append(query)
        labels = {word for one in right for word in tokenize(one.label, _STOP_WORDS)}
        if labels.isdisjoint(tokenize(prompt.text, _STOP_WORDS)):
            other_words.append(query)
    return {"free wording": every, "free, no label word": other_words}


def score(queries: Sequence[Query], found: Sequence[Sequence[ImageTextPair]]) -> dict[str, dict[str, float]]:
    """
    Shares of queries whose best subject, or one of the best four, is right, and whose place is: the one named, or none
    where none is named. Each with a 95 % interval ([`wilson`]), for which the number of clusters counts, not of
    queries.
    """
    hits = {measure: [] for measure in MEASURES}
    for query, pairs in zip(queries, found, strict=True):
        subjects = [pair.metadata["concept"] in query.concepts for pair in pairs if pair.kind == "subject"]
        places = [pair.metadata["concept"] for pair in pairs if pair.kind == "place"]
        hits["subject@1"].append(any(subjects[:1]))
        hits["subject@4"].append(any(subjects[:4]))
        hits["place@1"].append(places[:1] == ([query.place] if query.place else []))
    clusters = len({query.cluster for query in queries})
    return {
        measure: dict(zip(("share", "low", "high"), (sum(hit) / len(hit), *wilson(sum(hit) / len(hit), clusters))))
        for measure, hit in hits.items()
    }


def wilson(share: float, number: int) -> tuple[float, float]:
    """The 95 % score interval of Wilson for a share of `number` independent trials."""
    centre = share + _Z**2 / (2 * number)
    margin = _Z * math.sqrt(share * (1 - share) / number + _Z**2 / (4 * number**2))
    low, high = ((centre + sign * margin) / (1 + _Z**2 / number) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def indexed_text(pair: ImageTextPair, indexed: str) -> str:
    """What is indexed of a pair: its label, as the noun phrase of captions, its keywords, or both."""
    keywords = pair.metadata.get("keywords") or ""
    return {"label": pair.text, "keywords": keywords, "label + keywords": f"{pair.text}, {keywords}"}[indexed]


@dataclasses.dataclass(frozen=True)
class Search:
    """A way to search a memory: `retriever`, or without one the memory's own index of its recipe's fields."""

    system: str
    indexed: str
    memory: ImageTextMemory
    retriever: Retriever | None = None


def searches(folder: Path, encoder: Encoder, report: Report = lambda *_: None) -> Iterator[Search]:
    """All searches of a memory's folder that are compared, in the order of the tables."""
    recipe = RetrievalRecipe.for_kinds(("subject", "place"))
    built = []
    for number, (indexed, fields) in enumerate(_FIELDS.items()):
        report("indexes", number, len(_FIELDS))
        memory = ImageTextMemory.from_folder(folder, dataclasses.replace(recipe, fields=fields))
        texts = [indexed_text(pair, indexed) for pair in memory]
        bm25 = BM25Retriever(BM25Index.build([tokenize(text, _STOP_WORDS) for text in texts]), _STOP_WORDS)
        dense = DenseRetriever.build(texts, encoder, index="flat")
        built.append((indexed, memory, bm25, dense))
    report("indexes", len(_FIELDS), len(_FIELDS))
    for indexed, memory, _, _ in built:
        yield Search("bm25 recipe", indexed, memory)
    for indexed, memory, bm25, _ in built:
        yield Search("bm25", indexed, memory, bm25)
    for indexed, memory, _, dense in built:
        yield Search("dense", indexed, memory, dense)
    for indexed, memory, bm25, dense in built:
        yield Search("hybrid", indexed, memory, HybridRetriever([bm25, dense]))
    (label, memory, bm25, _), *_, (both, _, _, dense) = built
    yield Search("hybrid", f"bm25: {label}, dense: {both}", memory, HybridRetriever([bm25, dense]))


def evaluate_retrieval(
    world: str | Path,
    out: str | Path,
    encoder: str | Path | Encoder = MINILM,
    report: Report = lambda *_: None,
) -> dict[str, Any]:
    """
    Measures retrieval on emoji world and writes `retrieval.json`, `retrieval.csv` and, as tables for
    people, `retrieval.md`.

    Each system is asked for the four best subjects and the best place of captions of the held-out concepts, in three
    wordings, and of hand-written prompts. The systems:

    - `bm25 recipe`: the memory's own search, place first, with one field or two (the shipped recipe);
    - `bm25`, `dense`, `hybrid`: a [`Retriever`] over one text of each pair, or a fusion of two over different texts,
      which the memory asks kind by kind.

    Args:
        world (`str` or `Path`): A folder written by `vimi emoji-world build`.
        out (`str` or `Path`): Folder for the files; made if missing.
        encoder (`str`, `Path` or [`Encoder`], *optional*, defaults to `"minilm"`): Of the dense retriever.
        report (`Callable`, *optional*): Called as `report(stage, done, total)`.

    Returns:
        `dict`: what `retrieval.json` holds.

    Raises:
        `FileNotFoundError`: If `world` is not such a folder.
        `ImportError`: If FAISS or sentence-transformers is not installed.
        `ValueError`: If the world has no held-out concept that moves.
    """
    world, out = Path(world), Path(out)
    index = WorldIndex.load(world)
    held_out = [concept for concept in index.concepts.values() if concept.clip and concept.split == "held_out"]
    if not held_out:
        raise ValueError(f"The emoji world in {world} has no held-out concept that moves: build it whole.")
    encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
    rows, sets = [], {}
    for search in searches(world / "memory", encoder, report):
        if not sets:
            ids = search.memory.ids
            sets = {wording: caption_queries(index, held_out, wording, ids) for wording in WORDINGS}
            sets |= free_queries(index)
        for name, queries in sets.items():
            found = search.memory.search_batch(
                [query.text for query in queries],
                k={"subject": 4, "place": 1},
                exclude=[query.exclude for query in queries],
                retriever=search.retriever,
            )
            row = {"prompts": name, "system": search.system, "indexed": search.indexed, "number": len(queries)}
            rows.append(row | {"clusters": len({query.cluster for query in queries})} | score(queries, found))
    results = {
        "world": {"version": index.version, "size": index.size},
        "held_out_concepts": len(held_out),
        "captions_per_concept": CAPTIONS_PER_CONCEPT,
        "encoder": {name: value for name, value in encoder.identity().items() if name != "probe"},
        "versions": {
            "vimi_diffusers": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("sentence-transformers", "faiss-cpu", "transformers", "numpy")},
        },
        "rows": sorted(rows, key=lambda row: list(sets).index(row["prompts"])),
    }
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "retrieval.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with replacing(out / "retrieval.csv") as temporary:
        _write_csv(temporary, results["rows"])
    with replacing(out / "retrieval.md") as temporary:
        temporary.write_text("\n".join(_tables(results["rows"])), encoding="utf-8")
    return results


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        plain = ("prompts", "system", "indexed", "number", "clusters")
        writer.writerow([*plain, *(f"{one} {which}" for one in MEASURES for which in ("share", "low", "high"))])
        for row in rows:
            figures = [f"{row[one][which]:.4f}" for one in MEASURES for which in ("share", "low", "high")]
            writer.writerow([*(row[name] for name in plain), *figures])


def _tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: subjects of captions, subjects of hand-written prompts, and places."""
    cells = {(row["system"], row["indexed"], row["prompts"]): row for row in rows}
    searched = dict.fromkeys((row["system"], row["indexed"]) for row in rows)
    sets = {row["prompts"]: row["number"] for row in rows}
    free = [name for name in sets if name not in WORDINGS]
    subjects = ("subject@1", "subject@4")
    for columns in (
        [(name, measure) for name in WORDINGS for measure in subjects],
        [(name, measure) for name in free for measure in subjects],
        [(name, "place@1") for name in sets],
    ):
        titles = (f"{name} ({sets[name]}), {measure}" for name, measure in columns)
        yield f"| search | indexed text | {' | '.join(titles)} |"
        yield f"| --- | --- |{' ---: |' * len(columns)}"
        for system, indexed in searched:
            values = (cells[system, indexed, name][measure] for name, measure in columns)
            shown = (f"{100 * v['share']:.1f} ({100 * v['low']:.0f}-{100 * v['high']:.0f})" for v in values)
            yield f"| {system} | {indexed} | {' | '.join(shown)} |"
        yield ""
