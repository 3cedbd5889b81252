# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Several searches as one: reciprocal-rank fusion, and re-ranking for diversity."""

from collections.abc import Sequence

import numpy as np

from .dense import DenseRetriever
from .retriever import Retriever, best, check_request


class HybridRetriever(Retriever):
    """
    Reciprocal-rank fusion of several retrievers (Cormack, Clarke and Büttcher, SIGIR 2009): a document's score is the
    sum over the retrievers of `weight / (k + rank)`, the best document of a retriever having rank 1. Ranks need no
    common scale, so that BM25 scores and cosines can be added up this way.

    Args:
        retrievers (`Sequence[Retriever]`):
            Retrievers over the same documents.
        weights (`Sequence[float]`, *optional*, defaults to 1 for each):
            Factor of each retriever's part.
        k (`int`, *optional*, defaults to `60`):
            The formula's constant: the higher, the less the first ranks stand out.
        depth (`int`, *optional*, defaults to `100`):
            Documents that each retriever is asked for, or more if more are wanted.

    Raises:
        `ValueError`: if the retrievers are none or of different lengths, or a number cannot be used.
    """

    def __init__(
        self, retrievers: Sequence[Retriever], weights: Sequence[float] | None = None, k: int = 60, depth: int = 100
    ):
        self.retrievers = tuple(retrievers)
        if not self.retrievers:
            raise ValueError("A HybridRetriever needs at least one retriever.")
        lengths = [len(one) for one in self.retrievers]
        if len(set(lengths)) > 1:
            raise ValueError(f"The retrievers have {lengths} documents: build them over the same ones.")
        self.weights = (1.0,) * len(lengths) if weights is None else tuple(weights)
        if len(self.weights) != len(lengths) or not all(weight > 0 for weight in self.weights):
            raise ValueError(f"`weights` must be {len(lengths)} positive numbers, not {self.weights}.")
        if k < 0 or depth < 1:
            raise ValueError(f"Rank fusion needs k >= 0 and depth >= 1, not k={k}, depth={depth}.")
        self.k, self.depth = k, depth

    def __len__(self) -> int:
        return len(self.retrievers[0])

    def retrieve(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        check_request(queries, k)
        depth = min(max(k, self.depth), max(len(self), 1))
        found = [one.retrieve(queries, depth)[0] for one in self.retrievers]
        gains = np.concatenate([weight / (self.k + np.arange(1, depth + 1)) for weight in self.weights])
        rows, scores = np.full((len(queries), len(gains)), -1), np.zeros((len(queries), len(gains)))
        for query, candidates in enumerate(np.concatenate(found, axis=1)):
            there = candidates >= 0
            fused, position = np.unique(candidates[there], return_inverse=True)
            rows[query, : len(fused)] = fused
            scores[query, : len(fused)] = np.bincount(position, gains[there], minlength=len(fused))
        return best(rows, scores, k)


class DiverseRetriever(Retriever):
    """
    Another retriever's documents, re-ranked so that they differ from one another ([`mmr`]).

    Args:
        retriever ([`Retriever`]):
            Finds the candidates.
        dense ([`DenseRetriever`]):
            Embeddings of the same documents.
        trade_off (`float`, *optional*, defaults to `0.7`):
            1 ranks by likeness to the query alone, 0 by unlikeness to the documents before alone.
        depth (`int`, *optional*, defaults to `50`):
            Candidates that are re-ranked, or more if more documents are wanted.

    Raises:
        `ValueError`: if the two have different numbers of documents, or a number cannot be used.
    """

    def __init__(self, retriever: Retriever, dense: DenseRetriever, trade_off: float = 0.7, depth: int = 50):
        if len(retriever) != len(dense):
            raise ValueError(f"The retriever has {len(retriever)} documents, the embeddings {len(dense)}.")
        _check_trade_off(trade_off)
        if depth < 1:
            raise ValueError(f"`depth` must be at least 1, not {depth}.")
        self.retriever, self.dense, self.trade_off, self.depth = retriever, dense, trade_off, depth

    def __len__(self) -> int:
        return len(self.retriever)

    def retrieve(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """
        As [`Retriever.retrieve`], but in the order in which [`mmr`] chooses. The score is the likeness to the query
        (cosine), which therefore need not fall from one document to the next.
        """
        check_request(queries, k)
        found, _ = self.retriever.retrieve(queries, max(k, self.depth))
        rows, scores = np.full((len(queries), k), -1), np.zeros((len(queries), k), dtype=np.float32)
        for query, (candidates, vector) in enumerate(zip(found, self.dense.encoder.encode_queries(queries))):
            candidates = candidates[candidates >= 0]
            vectors = self.dense.embeddings(candidates)
            likeness = vectors @ vector
            chosen = mmr(likeness, vectors, k, self.trade_off)
            rows[query, : len(chosen)] = candidates[chosen]
            scores[query, : len(chosen)] = likeness[chosen]
        return rows, scores


def mmr(relevance: np.ndarray, embeddings: np.ndarray, k: int, trade_off: float = 0.7) -> np.ndarray:
    """
    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): again and again the candidate with the highest
    `trade_off * relevance - (1 - trade_off) * likeness to the most alike one chosen before`.

    Args:
        relevance (`np.ndarray`):
            How well each candidate fits the query, `float[n]`, on the scale of a cosine.
        embeddings (`np.ndarray`):
            The candidates' vectors of length 1, `float[n, dimension]`.
        k (`int`):
            Number of candidates to choose, all `n` if there are fewer.
        trade_off (`float`, *optional*, defaults to `0.7`):
            The paper's lambda, from 0 (diversity alone) to 1 (relevance alone).

    Returns:
        `np.ndarray`: positions of the chosen candidates, `int64[min(k, n)]`, in the order of choice; of equal ones the
        first.

    Raises:
        `ValueError`: if the numbers of candidates differ or `trade_off` is not between 0 and 1.
    """
    _check_trade_off(trade_off)
    relevance, embeddings = np.asarray(relevance), np.asarray(embeddings)
    if embeddings.ndim != 2 or relevance.shape != embeddings.shape[:1]:
        raise ValueError(f"{relevance.shape} relevances do not fit embeddings of the shape {embeddings.shape}.")
    chosen: list[int] = []
    gain = trade_off * relevance.astype(np.float64)
    likeness = np.full(len(relevance), -np.inf)
    for _ in range(min(k, len(relevance))):
        penalty = (1 - trade_off) * likeness if chosen else 0.0
        score = gain - penalty
        score[chosen] = -np.inf
        chosen.append(int(score.argmax()))
        likeness = np.maximum(likeness, embeddings @ embeddings[chosen[-1]])
    return np.array(chosen, dtype=np.int64)


def _check_trade_off(trade_off: float) -> None:
    if not 0 <= trade_off <= 1:
        raise ValueError(f"`trade_off` must be between 0 and 1, not {trade_off}.")
