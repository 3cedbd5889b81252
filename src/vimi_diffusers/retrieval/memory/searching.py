# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""From a prompt to rows of a memory: by its own indexes, kind after kind, or by any retriever."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from ..bm25 import BM25Index
from ..recipe import ENGLISH_STOP_WORDS, RetrievalRecipe, tokenize
from .indexing import field_text, index_name
from .lookup import Lookup
from .shards import PairReader


if TYPE_CHECKING:
    from ..retriever import Retriever


Found = list[tuple[int, float]]  # rows with their scores
Fetch = Callable[[Sequence["_Query"], int], tuple[np.ndarray, np.ndarray]]  # -1 where there are no more rows


@dataclass(frozen=True)
class Wanted:
    """
    What a prompt may find.

    Attributes:
        count_of_kind (`Mapping[str, int]`): How many rows at most of each kind, of `""` without kinds.
        excluded (`Collection[int]`): Rows that it must not find.
        preferred (`Collection[int]`): Rows that stand for their group if that is found.
    """

    count_of_kind: Mapping[str, int]
    excluded: Collection[int]
    preferred: Collection[int]


@dataclass(frozen=True)
class _Query:
    """A search for rows of one kind, or of any (`""`), for the prompt of a number."""

    prompt: int
    text: str
    kind: str
    count: int
    excluded: Collection[int]
    preferred: Collection[int]


class Search:
    """
    Searches a memory's rows.

    Args:
        recipe ([`RetrievalRecipe`]): How the indexes are used.
        reader ([`PairReader`]): The pairs.
        lookup ([`Lookup`]): Their kinds and groups.
        indexes (`Mapping[str, BM25Index]`): By name.
    """

    def __init__(self, recipe: RetrievalRecipe, reader: PairReader, lookup: Lookup, indexes: Mapping[str, BM25Index]):
        self.recipe = recipe
        self._reader, self._lookup, self._indexes = reader, lookup, indexes
        self._stop_words = frozenset(recipe.stop_words)
        self._rows_of_kind = lru_cache(None)(lambda kind: np.flatnonzero(lookup.kinds() == recipe.kinds.index(kind)))

    def counts(self, k: int | Mapping[str, int]) -> dict[str, int]:
        """How many rows of each kind are wanted."""
        kinds = self.recipe.kinds or ("",)
        counts = dict(k) if isinstance(k, Mapping) else dict.fromkeys(kinds, k)
        for kind, count in counts.items():
            if kind not in kinds:
                has = ", ".join(map(repr, self.recipe.kinds)) or "no kinds: pass one number"
                raise ValueError(f"`k` names kind {kind!r}, but the memory has {has}.")
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ValueError(f"`k` must be a whole number of pairs, 0 or more, not {count!r}.")
        return {kind: counts.get(kind, 0) for kind in kinds}

    def rows(self, ids: Iterable[str], argument: str) -> frozenset[int]:
        """The rows of ids that an argument names."""
        if isinstance(ids, str):
            raise ValueError(f"`{argument}` takes a list of ids, not the string {ids!r}.")
        rows = []
        for id in ids:
            row = self._lookup.row_of(id) if isinstance(id, str) else None
            if row is None:
                raise ValueError(f"`{argument}` names pair {id!r}, which is not in the memory: leave it out.")
            rows.append(row)
        return frozenset(rows)

    def batch(
        self, prompts: Sequence[str], wanted: Sequence[Wanted], retriever: "Retriever | None" = None
    ) -> list[Found]:
        """The rows for each prompt, by the memory's indexes or by a retriever."""
        if retriever is None and (self.recipe.kinds or len(self.recipe.fields) > 1):
            return [self._by_kinds(prompt, want) for prompt, want in zip(prompts, wanted)]
        if self.recipe.kinds:
            return self._retrieved_by_kinds(prompts, wanted, partial(_ask_retriever, retriever))
        queries = [
            _Query(number, prompt, "", want.count_of_kind[""], want.excluded, want.preferred)
            for number, (prompt, want) in enumerate(zip(prompts, wanted))
            if want.count_of_kind[""] and prompt.strip()
        ]
        fetch = self._ask_index if retriever is None else partial(_ask_retriever, retriever)
        found: list[Found] = [[] for _ in prompts]
        for query, rows in zip(queries, self._fill(queries, fetch)):
            found[query.prompt] += rows
        return found

    def _retrieved_by_kinds(self, prompts: Sequence[str], wanted: Sequence[Wanted], fetch: Fetch) -> list[Found]:
        """[`_by_kinds`] with a retriever, which is asked for all prompts at once."""
        before, after = map(list, zip(*map(self.recipe.split_at_cue, prompts))) if prompts else ([], [])
        found: dict[str, list[Found]] = {}
        for position, kind in reversed(list(enumerate(self.recipe.kinds))):
            texts = list(after) if position else [f"{one} {other}" for one, other in zip(before, after)]
            asked = [number for number, text in enumerate(texts) if text.strip()]
            if position:
                named = self._fill([_Query(number, texts[number], kind, 1, (), ()) for number in asked], fetch)
                for number, rows in zip(asked, named):
                    words = tokenize(after[number], self._stop_words)
                    text = self._reader.value(rows[0][0], "text") if rows else ""
                    after[number] = " ".join(_without(words, Counter(tokenize(text, self._stop_words))))
            queries = [
                _Query(number, texts[number], kind, count, want.excluded, want.preferred)
                for number in asked
                if (count := (want := wanted[number]).count_of_kind[kind])
            ]
            found[kind] = [[] for _ in prompts]
            for query, rows in zip(queries, self._fill(queries, fetch)):
                found[kind][query.prompt] = rows
        return [[one for kind in self.recipe.kinds for one in found[kind][number]] for number in range(len(prompts))]

    def _ask_index(self, queries: Sequence[_Query], count: int) -> tuple[np.ndarray, np.ndarray]:
        field = self.recipe.fields[0]
        words = [tokenize(query.text, self._stop_words) for query in queries]
        rows, scores = self._indexes[field.name].search(words, count, [query.excluded for query in queries])
        return rows, scores * np.float32(field.weight)

    def _fill(self, queries: Sequence[_Query], fetch: Fetch) -> list[Found]:
        """Ask for ever more rows, until what may not be found and what shows the same has left enough of them."""
        found: list[Found] = [[] for _ in queries]
        pending = list(range(len(queries)))
        count = max((query.count + len(query.excluded) for query in queries), default=0)
        count *= 4 if self.recipe.kinds or self.recipe.group_by else 1
        while pending:
            count = min(count, len(self._reader))
            all_rows, all_scores = fetch([queries[number] for number in pending], count)
            unsettled = []
            for number, rows, scores in zip(pending, all_rows, all_scores):
                is_last = count == len(self._reader) or (rows < 0).any()
                rows, scores = rows[rows >= 0], scores[rows >= 0]
                rows, scores = _without_rows(rows, scores, queries[number].excluded)
                if queries[number].kind:
                    keep = self._lookup.kinds_at(rows) == self.recipe.kinds.index(queries[number].kind)
                    rows, scores = rows[keep], scores[keep]
                found[number], is_settled = self._pick(rows, scores, queries[number].count, queries[number].preferred)
                if not is_settled and not is_last:
                    unsettled.append(number)
            pending, count = unsettled, 4 * count
        return found

    def _pick(
        self, rows: np.ndarray, scores: np.ndarray, count: int, preferred: Collection[int]
    ) -> tuple[Found, bool]:
        """The first of the ranked rows, at most one for each group; and whether further rows would change nothing."""
        if self.recipe.group_by is None:
            rows = rows[:count]
            return [*zip(rows.tolist(), scores[:count].tolist())], len(rows) == count
        groups = self._lookup.groups_at(rows)
        _, first = np.unique(groups, return_index=True)
        heads = sorted(first)[:count]
        picked = []
        for head in heads:
            members = np.flatnonzero(groups == groups[head]) if preferred else ()
            chosen = next((member for member in members if int(rows[member]) in preferred), head)
            picked.append((int(rows[chosen]), float(scores[chosen])))
        unseen = np.array([row for row in preferred if row not in rows], dtype=np.int64)
        may_come = np.isin(self._lookup.groups_at(unseen), groups[heads]).any() if len(unseen) else False
        return picked, len(picked) == count and not may_come

    def _by_kinds(self, prompt: str, want: Wanted) -> Found:
        """The rows for one prompt, kind by kind in the recipe's order; by several fields in a memory without kinds."""
        before, after = (tokenize(part, self._stop_words) for part in self.recipe.split_at_cue(prompt))
        found = {}
        # A place's words would vote for subjects too ("in an old laboratory": an old woman), so the last kind goes
        # first and takes its words along. That its pairs may be excluded does not change what the words mean.
        for position, kind in reversed(list(enumerate(want.count_of_kind))):
            query = after if position else before + after
            rows, scores = self._ranked(kind, query, prompt)
            if position and len(rows):
                after = _without(after, self._named_by(int(rows[0]), query))
            rows, scores = _without_rows(rows, scores, want.excluded)
            found[kind], _ = self._pick(rows, scores, want.count_of_kind[kind], want.preferred)
        return [one for kind in want.count_of_kind for one in found[kind]]

    def _ranked(self, kind: str, words: Sequence[str], prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a kind that share a word with the query, and their scores, best first."""
        by_field = [one.weight * self._indexes[index_name(kind, one.name)].scores(words) for one in self.recipe.fields]
        scores = sum(by_field, start=np.zeros(len(by_field[0]), dtype=np.float32))
        found = np.flatnonzero(scores)
        rows = self._rows_of_kind(kind) if kind else np.arange(len(scores))
        literal = np.zeros(len(scores), dtype=bool)
        if self.recipe.kinds and len(found):
            # Pairs whose texts differ in stop words alone ("thumbs up", "thumbs down") match alike.
            alike = np.flatnonzero(by_field[0] == by_field[0].max()) if by_field[0].any() else found[:0]
            literal[alike] = [self._is_named(int(rows[one]), prompt) for one in alike]
        found = found[np.lexsort((found, -scores[found], ~literal[found]))]
        return rows[found], scores[found]

    def _is_named(self, row: int, prompt: str) -> bool:
        """Whether the prompt holds the pair's text to the letter, articles aside."""
        text, prompt = (
            f" {' '.join(tokenize(one, ENGLISH_STOP_WORDS))} " for one in (self._reader.value(row, "text"), prompt)
        )
        return text in prompt

    def _named_by(self, row: int, words: Sequence[str]) -> Counter[str]:
        """The words of the pair's first field that shares a word with the query: its text, else its keywords."""
        caption = self._reader.caption(row)
        for one in self.recipe.fields:
            named = Counter(tokenize(field_text(caption, one.name), self._stop_words))
            if not named.keys().isdisjoint(words):
                return named
        raise AssertionError(f"{caption['id']!r} was found without a shared word")


def _ask_retriever(retriever: "Retriever", queries: Sequence[_Query], count: int) -> tuple[np.ndarray, np.ndarray]:
    return retriever.retrieve([query.text for query in queries], count)


def _without_rows(rows: np.ndarray, scores: np.ndarray, excluded: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
    if not excluded:
        return rows, scores
    keep = ~np.isin(rows, np.fromiter(excluded, np.int64))
    return rows[keep], scores[keep]


def _without(words: Sequence[str], named: Mapping[str, int]) -> list[str]:
    """The words of a query less the named ones, each as often as it is named, from the end of the query."""
    left = Counter(named)
    rest = []
    for word in reversed(words):
        if left[word]:
            left[word] -= 1
        else:
            rest.append(word)
    return rest[::-1]
