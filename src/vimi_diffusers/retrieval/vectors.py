# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Nearest neighbours among vectors: FAISS indexes in shards, streamed in and memory-mapped."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    import faiss


logger = logging.getLogger(__name__)

FLAT_LIMIT, HNSW_LIMIT = 50_000, 1_000_000
TRAINING_SIZE = 262_144
MIN_PQ_TRAINING = 256  # one vector for each of a byte's codes
NPROBE, EF_SEARCH = 32, 128
_POINTS_PER_LIST = 39  # the fewest that FAISS trains without a warning
_SHARD_BYTES = 2**30


@dataclass
class Shard:
    """
    Consecutive documents of a list. Those in `empty` (positions in the shard, ascending) have no vector.
    """

    index: "faiss.Index"
    num_documents: int
    empty: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """Numbers of vectors -> numbers of documents in the shard; -1 stays -1."""
        return positions + np.searchsorted(self.empty - np.arange(len(self.empty)), positions, side="right")

    def positions(self, documents: np.ndarray) -> np.ndarray:
        """Numbers of documents in the shard -> numbers of vectors, -1 for those without one."""
        before = np.searchsorted(self.empty, documents)
        return np.where(np.isin(documents, self.empty), -1, documents - before)


def require_faiss():
    """The module `faiss`, or an error that says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError('Dense retrieval needs FAISS: pip install "vimi_diffusers[retrieval]".') from error
    return faiss


def factory_string(kind: str, num_documents: int | None, num_training: int, dimension: int) -> str:
    """
    FAISS's name for an index of a kind.

    Args:
        kind (`str`):
            `"auto"`, `"flat"`, `"hnsw"`, `"ivfpq"`, or already a string for `faiss.index_factory`.
        num_documents (`int`, *optional*):
            Size of the index; `None` if it is not known but large.
        num_training (`int`):
            Vectors that it can be trained on.
        dimension (`int`):
            Their length.
    """
    if kind == "auto":
        size = math.inf if num_documents is None else num_documents
        kind = "flat" if size <= FLAT_LIMIT else "hnsw" if size <= HNSW_LIMIT else "ivfpq"
    if kind == "flat":
        return "Flat"
    if kind == "hnsw":
        return "HNSW32,Flat"
    if kind != "ivfpq":
        return kind
    wanted = 4 * math.sqrt(num_training if num_documents is None else num_documents)
    lists = max(1, min(wanted, num_training / _POINTS_PER_LIST))
    codes = next(size for size in (4, 3, 2, 1) if dimension % size == 0)
    return f"IVF{2 ** int(math.log2(lists))},PQ{dimension // codes}x8"


def make_index(factory: str, dimension: int) -> "faiss.Index":
    """
    An empty index for vectors of length 1, compared by their inner product.

    Raises:
        `ValueError`: if FAISS knows no such index.
    """
    faiss = require_faiss()
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2]
        raise ValueError(
            f'FAISS makes no index {factory!r} of {dimension} dimensions ({reason}): pass index="auto", "flat", '
            f'"hnsw", "ivfpq" or a string for faiss.index_factory.'
        ) from error


def train(index: "faiss.Index", factory: str, sample: np.ndarray) -> None:
    """
    Raises:
        `ValueError`: if the sample is too small.
    """
    if "PQ" in factory and len(sample) < MIN_PQ_TRAINING:
        raise ValueError(
            f"The index {factory!r} cannot be trained on {len(sample)} documents, it needs {MIN_PQ_TRAINING}: pass "
            f'index="flat" (or "hnsw"), which need none.'
        )
    if "PQ" in factory and len(sample) < _POINTS_PER_LIST * MIN_PQ_TRAINING:
        logger.warning("%s is trained on only %d documents: many neighbours will be missed.", factory, len(sample))
    for clustering in _clusterings(index):
        clustering.min_points_per_centroid = 1  # or FAISS warns once for each byte of a code
    try:
        index.train(sample)
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2] or error
        raise ValueError(
            f"The index {factory!r} cannot be trained on {len(sample)} documents ({reason}): pass fewer lists or a "
            "larger `training_size`."
        ) from error


def _clusterings(index: "faiss.Index") -> list["faiss.ClusteringParameters"]:
    index = inverted_lists(index) or index
    return [one.cp for one in (index, getattr(index, "pq", None)) if hasattr(one, "cp")]


def fill_shards(
    empty: "faiss.Index", blocks: Iterable[tuple[np.ndarray, np.ndarray]], shard_size: int | None
) -> Iterator[Shard]:
    """
    Shards of at most `shard_size` documents (by default as many as fill about 1 GiB).

    Args:
        empty (`faiss.Index`): A trained index without vectors, of which each shard is a copy.
        blocks (`Iterable[tuple]`): For consecutive documents which have a vector, `bool[n]`, and those vectors.
        shard_size (`int`, *optional*): Documents in a shard.
    """
    faiss = require_faiss()
    shard_size = shard_size or max(1, _SHARD_BYTES // _row_bytes(empty))
    shard, without = None, []
    for has_vector, vectors in blocks:
        start = 0
        while start < len(has_vector):
            if shard is None:
                shard, without = Shard(faiss.clone_index(empty), 0), []
            end = min(len(has_vector), start + shard_size - shard.num_documents)
            part = has_vector[start:end]
            skipped = int(has_vector[:start].sum())
            shard.index.add(vectors[skipped : skipped + int(part.sum())])
            without.append(shard.num_documents + np.flatnonzero(~part))
            shard.num_documents += end - start
            start = end
            if shard.num_documents == shard_size:
                shard.empty = np.concatenate(without)
                yield shard
                shard = None
    if shard is not None:
        shard.empty = np.concatenate(without)
        yield shard


def _row_bytes(index: "faiss.Index") -> int:
    """Bytes of a vector in an index, with its links in a graph."""
    if hasattr(index, "hnsw"):
        return index.storage.sa_code_size() + 4 * index.hnsw.nb_neighbors(0)
    return index.sa_code_size()


def search_shards(
    empty: "faiss.Index", shards: Sequence[Shard], queries: np.ndarray, k: int, nprobe: int, ef_search: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each shard the best `k` documents for each query, as numbers in the shard (-1: none), and their cosines."""
    faiss = require_faiss()
    lists = inverted_lists(empty)
    if lists is not None:
        # All shards have the same lists, so the nearest ones are looked up once.
        if isinstance(empty, faiss.IndexPreTransform):
            for number in range(empty.chain.size()):
                queries = faiss.downcast_VectorTransform(empty.chain.at(number)).apply(queries)
        nprobe = min(nprobe, lists.nlist)
        nearness, nearest = lists.quantizer.search(queries, nprobe)
    for shard in shards:
        if lists is not None:
            index = inverted_lists(shard.index)
            index.nprobe = nprobe
            scores, positions = index.search_preassigned(queries, k, nearest, nearness)
        elif hasattr(shard.index, "hnsw"):
            parameters = faiss.SearchParametersHNSW(efSearch=max(ef_search, k))
            scores, positions = shard.index.search(queries, k, params=parameters)
        else:
            scores, positions = shard.index.search(queries, k)
        yield np.where(positions < 0, -1, shard.documents(positions)), scores


def inverted_lists(index: "faiss.Index") -> "faiss.IndexIVF | None":
    """The part of an index that has inverted lists, if there is one."""
    faiss = require_faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    return index if isinstance(index, faiss.IndexIVF) else None


def vectors_at(index: "faiss.Index", positions: np.ndarray) -> np.ndarray:
    """The stored vectors, as far as a compressed index still knows them."""
    lists = inverted_lists(index)
    if lists is not None and lists.direct_map.type == lists.direct_map.NoMap:
        lists.make_direct_map()
    return index.reconstruct_batch(np.ascontiguousarray(positions, dtype=np.int64))


def write_index(index: "faiss.Index", path: Path) -> None:
    """Write an index into a file."""
    require_faiss().write_index(index, str(path))


def read_index(path: Path, mmap: bool) -> "faiss.Index":
    """
    Read an index from a file, memory-mapped or whole.

    Raises:
        `ValueError`: if the file holds no index.
    """
    faiss = require_faiss()
    try:
        if not mmap:
            return faiss.read_index(str(path))
        # Plain IO_FLAG_MMAP maps inverted lists alone and reads flat vectors and graphs into memory.
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise ValueError(f"{path} is no FAISS index that can be read ({error}).") from error
