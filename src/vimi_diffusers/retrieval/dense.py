# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Dense retrieval: documents and queries as vectors of one encoder, nearest neighbours by FAISS."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..files import check_new_folder, replacing, whole_folder
from . import vectors
from .encoder import MINILM, Encoder
from .retriever import Retriever, best, check_request
from .vectors import Shard


if TYPE_CHECKING:
    import faiss
    from sentence_transformers import SentenceTransformer


FORMAT = "vimi_diffusers.DenseRetriever"
FORMAT_VERSION = 1
_MANIFEST, _TRAINED = "manifest.json", "trained.faiss"
_BATCHES_PER_BLOCK = 8

Document = str | Image.Image


class DenseRetriever(Retriever):
    """
    Nearest neighbours of a query among documents (texts, or images with an encoder for both), by the cosine of their
    vectors.

    Make one with [`~DenseRetriever.build`], [`~DenseRetriever.create`] or [`~DenseRetriever.load`]. Empty texts keep
    their numbers but are never found, and an empty query finds nothing.

    Attributes:
        encoder ([`Encoder`]): Makes the vectors.
        factory (`str`): FAISS's name for the index, such as `"IVF4096,PQ96x8"`.
        nprobe (`int`): Inverted lists that an index with such lists searches; more find more, and take longer.
        ef_search (`int`): Candidates that an HNSW graph is searched with; likewise.
        min_score (`float`): Cosine from which on a document counts as found, at first -1: all are. Without a bound the
            nearest document is found for any query, however little it has to do with it.
    """

    def __init__(self, encoder: Encoder, factory: str, trained: "faiss.Index", shards: Sequence[Shard]):
        self.encoder, self.factory = encoder, factory
        self.nprobe, self.ef_search, self.min_score = vectors.NPROBE, vectors.EF_SEARCH, -1.0
        self._trained, self._shards = trained, list(shards)
        self._folder: Path | None = None
        self._manifest: dict[str, Any] = {}

    # ------------------------------------------------------------------ building
    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        encoder: "str | Path | SentenceTransformer | Encoder" = MINILM,
        index: str = "auto",
        training_size: int = vectors.TRAINING_SIZE,
    ) -> "DenseRetriever":
        """
        Index documents in memory.

        Args:
            documents (`Iterable[str]` or `Iterable[PIL.Image.Image]`):
                Texts or images. They are read as a stream and not kept.
            encoder (`str`, `Path`, `SentenceTransformer` or [`Encoder`], *optional*, defaults to `"minilm"`):
                What makes the vectors, see [`Encoder`].
            index (`str`, *optional*, defaults to `"auto"`):
                `"flat"` (exact), `"hnsw"` (a graph beside the whole vectors: fast, little loss), `"ivfpq"` (about a
                sixteenth of the vectors' size, in inverted lists) or any string for `faiss.index_factory`. `"auto"`
                takes flat up to 50,000 documents, HNSW up to a million, else IVF-PQ.
            training_size (`int`, *optional*, defaults to `262144`):
                Documents that an IVF-PQ index is trained on: a random sample of a list or data set with a length, the
                first ones of a plain stream, which should therefore be in random order.

        Raises:
            `ImportError`: if FAISS or sentence-transformers is not installed.
            `ValueError`: if there is no document, or the index or encoder cannot be used.
        """
        encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
        factory, trained, blocks = _prepare(documents, encoder, index, training_size)
        return cls(encoder, factory, trained, vectors.fill_shards(trained, blocks, None))

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike,
        documents: Iterable[Document],
        encoder: "str | Path | SentenceTransformer | Encoder" = MINILM,
        index: str = "auto",
        training_size: int = vectors.TRAINING_SIZE,
        shard_size: int | None = None,
    ) -> "DenseRetriever":
        """
        Index documents straight into a new folder, one shard in memory at a time, and open it memory-mapped. The
        folder appears whole or not at all.

        Args:
            folder (`str` or `os.PathLike`):
                Where to write. It must not exist or be empty.
            documents, encoder, index, training_size:
                As in [`~DenseRetriever.build`].
            shard_size (`int`, *optional*, defaults to what fills about 1 GiB):
                Documents in a shard.

        Raises:
            As [`~DenseRetriever.build`], and `ValueError` if the folder is taken.
        """
        folder = Path(folder)
        check_new_folder(folder)
        if shard_size is not None and shard_size < 1:
            raise ValueError(f"`shard_size` must be at least 1, not {shard_size}.")
        encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
        factory, trained, blocks = _prepare(documents, encoder, index, training_size)
        with whole_folder(folder) as new:
            shards = vectors.fill_shards(trained, blocks, shard_size)
            _write_manifest(new, _write(new, encoder, factory, trained, shards))
        return cls.load(folder, encoder, verify=False)

    def add(self, documents: Iterable[Document]) -> None:
        """
        Add documents behind those that are there, as a shard or several of their own. A saved retriever's folder
        shows all of them or none.

        Raises:
            `ValueError`: if the encoder cannot encode them.
        """
        shards = vectors.fill_shards(self._trained, _blocks(documents, self.encoder), None)
        if self._folder is None:
            self._shards.extend(list(shards))
            return
        files = _write_shards(self._folder, shards, len(self._manifest["shards"]))
        manifest = {**self._manifest, "shards": self._manifest["shards"] + files}
        _write_manifest(self._folder, manifest)
        self._manifest = manifest
        self._shards += [_read_shard(self._folder, one, mmap=True) for one in files]

    # ------------------------------------------------------------------ files
    def save(self, folder: str | os.PathLike) -> None:
        """
        Write the index into a new folder, which appears whole or not at all. The encoder is not written, only what
        tells it from others.

        Raises:
            `ValueError`: if the folder is taken.
        """
        folder = Path(folder)
        check_new_folder(folder)
        with whole_folder(folder) as new:
            _write_manifest(new, _write(new, self.encoder, self.factory, self._trained, self._shards))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        encoder: "str | Path | SentenceTransformer | Encoder | None" = None,
        mmap: bool = True,
        verify: bool = True,
    ) -> "DenseRetriever":
        """
        Open a saved index.

        Args:
            folder (`str` or `os.PathLike`):
                Folder that [`~DenseRetriever.save`] or [`~DenseRetriever.create`] wrote.
            encoder (`str`, `Path`, `SentenceTransformer` or [`Encoder`], *optional*):
                The encoder that the index was built with. Defaults to loading it by the name it had then.
            mmap (`bool`, *optional*, defaults to `True`):
                Map the shards from disk instead of reading them into memory.
            verify (`bool`, *optional*, defaults to `True`):
                Compare the files' hashes with the manifest, which reads them once. Sizes are compared in any case.

        Raises:
            `FileNotFoundError`: if there is no such folder.
            `ValueError`: if it is not an index or is damaged, or if the encoder is another than it was built with.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder, verify)
        built_with = manifest["encoder"]
        if encoder is None and built_with["name"] is None:
            raise ValueError(
                f"{folder} was built with a SentenceTransformer object: pass the same one as `encoder` to load it."
            )
        if encoder is None:
            encoder = Encoder(built_with["name"], revision=built_with["revision"])
        encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
        encoder.check_identity(built_with, str(folder))
        trained = vectors.read_index(folder / _TRAINED, mmap=False)
        shards = [_read_shard(folder, one, mmap) for one in manifest["shards"]]
        retriever = cls(encoder, manifest["factory"], trained, shards)
        retriever._folder, retriever._manifest = folder, manifest
        return retriever

    # ------------------------------------------------------------------ searching
    def __len__(self) -> int:
        return sum(shard.num_documents for shard in self._shards)

    @property
    def num_empty(self) -> int:
        """Documents that are never found because their text is empty."""
        return sum(len(shard.empty) for shard in self._shards)

    def retrieve(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        check_request(queries, k)
        for name in ("nprobe", "ef_search"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}.")
        asked = [number for number, query in enumerate(queries) if query.strip()]
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        if asked and self._shards:
            embedded = self.encoder.encode_queries([queries[number] for number in asked])
            rows[asked], scores[asked] = self._nearest(embedded, k)
        return rows, scores

    def _nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        depth = min(k, max(shard.num_documents for shard in self._shards))
        found = vectors.search_shards(self._trained, self._shards, queries, depth, self.nprobe, self.ef_search)
        parts = [
            (np.where((rows < 0) | (scores < self.min_score), -1, rows + start), scores)
            for start, (rows, scores) in zip(self._starts(), found)
        ]
        return best(*(np.concatenate(columns, axis=1) for columns in zip(*parts)), k)

    def embeddings(self, rows: Sequence[int]) -> np.ndarray:
        """
        The vectors of documents, `float32[len(rows), dimension]`: from an IVF-PQ index what the compression left of
        them, scaled to length 1 again, and zeros for empty texts. The first call on an index with inverted lists
        makes a table of 8 bytes for each document.

        Raises:
            `IndexError`: if there is no such document.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"Rows {rows.min()} to {rows.max()} of {len(self)} documents.")
        result = np.zeros((len(rows), self.encoder.dimension), dtype=np.float32)
        for start, shard in zip(self._starts(), self._shards):
            inside = np.flatnonzero((start <= rows) & (rows < start + shard.num_documents))
            positions = shard.positions(rows[inside] - start)
            inside, positions = inside[positions >= 0], positions[positions >= 0]
            if len(inside):
                result[inside] = vectors.vectors_at(shard.index, positions)
        return result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-12)

    def _starts(self) -> list[int]:
        return list(itertools.accumulate((shard.num_documents for shard in self._shards), initial=0))[:-1]

    def __repr__(self) -> str:
        return f"DenseRetriever({len(self)} documents, {self.factory}, {self.encoder})"


def _prepare(
    documents: Iterable[Document], encoder: Encoder, kind: str, training_size: int
) -> tuple[str, "faiss.Index", Iterator[tuple[np.ndarray, np.ndarray]]]:
    """The index's name, the trained index without vectors, and all documents' vectors."""
    if isinstance(documents, str):
        raise ValueError("A DenseRetriever takes a list of texts, not one string.")
    if training_size < 1:
        raise ValueError(f"`training_size` must be at least 1, not {training_size}.")
    vectors.make_index("Flat" if kind in ("auto", "flat", "hnsw", "ivfpq") else kind, encoder.dimension)
    blocks, head = _blocks(documents, encoder), []
    while sum(len(has_vector) for has_vector, _ in head) < training_size and (block := next(blocks, None)):
        head.append(block)
    if not any(has_vector.any() for has_vector, _ in head):
        raise ValueError("There is no document with a text to index.")
    head_size = sum(len(has_vector) for has_vector, _ in head)
    after = next(blocks, None)
    size = len(documents) if hasattr(documents, "__len__") else head_size if after is None else None
    factory = vectors.factory_string(kind, size, min(head_size, training_size), encoder.dimension)
    trained = vectors.make_index(factory, encoder.dimension)
    if not trained.is_trained:
        if after is not None and hasattr(documents, "__len__"):
            chosen = set(np.random.default_rng(0).choice(size, training_size, replace=False).tolist())
            drawn = (one for number, one in enumerate(documents) if number in chosen)
            sample = [found for _, found in _blocks(drawn, encoder)]
        else:
            sample = [found for _, found in head]
        vectors.train(trained, factory, np.concatenate(sample)[:training_size])
    return factory, trained, itertools.chain(head, [] if after is None else [after], blocks)


def _blocks(documents: Iterable[Document], encoder: Encoder) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For one block of documents after the other which of them are not empty, `bool[n]`, and the vectors of those."""
    documents = iter(documents)
    while block := list(itertools.islice(documents, _BATCHES_PER_BLOCK * encoder.batch_size)):
        for document in block:
            if not isinstance(document, Document):
                raise ValueError(f"A document is a text or a PIL image, not {type(document).__name__}.")
        kept = np.array([not isinstance(one, str) or bool(one.strip()) for one in block])
        yield kept, encoder.encode_documents([one for one, keep in zip(block, kept) if keep])


def _write(
    folder: Path, encoder: Encoder, factory: str, trained: "faiss.Index", shards: Iterable[Shard]
) -> dict[str, Any]:
    """Write an index's files into a folder; returns what its manifest is to say."""
    vectors.write_index(trained, folder / _TRAINED)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "encoder": encoder.identity(),
        "factory": factory,
        "trained": _described(folder / _TRAINED),
        "shards": _write_shards(folder, shards, 0),
    }


def _write_shards(folder: Path, shards: Iterable[Shard], first: int) -> list[dict[str, Any]]:
    written = []
    for number, shard in enumerate(shards, first):
        index, empty = folder / f"shard-{number:05}.faiss", folder / f"shard-{number:05}-empty.npy"
        vectors.write_index(shard.index, index)
        np.save(empty, shard.empty)
        written.append({"num_documents": shard.num_documents, "index": _described(index), "empty": _described(empty)})
    return written


def _read_shard(folder: Path, entry: Mapping[str, Any], mmap: bool) -> Shard:
    index = vectors.read_index(folder / entry["index"]["path"], mmap)
    empty = np.load(folder / entry["empty"]["path"])
    if index.ntotal + len(empty) != entry["num_documents"]:
        raise ValueError(f"{folder / entry['index']['path']} does not hold the {entry['num_documents']} documents.")
    return Shard(index, entry["num_documents"], empty)


def _described(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": file.name, "bytes": file.stat().st_size, "sha256": digest}


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    with replacing(folder / _MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _read_manifest(folder: Path, verify: bool) -> dict[str, Any]:
    """The manifest of a folder whose files are all there, of the right size and content."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no dense index at {folder}: make one with DenseRetriever.create.")
    path = folder / _MANIFEST
    if not path.is_file() or FORMAT not in path.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{folder} is not a saved DenseRetriever: make one with DenseRetriever.create.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
        files = [manifest["trained"], *(shard[name] for shard in manifest["shards"] for name in ("index", "empty"))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): build the index again.") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format version {version}, this package reads {FORMAT_VERSION}: build it again."
        )
    for file in files:
        damage = None
        if not (folder / file["path"]).is_file():
            damage = "is missing"
        elif (folder / file["path"]).stat().st_size != file["bytes"]:
            damage = f"has {(folder / file['path']).stat().st_size} bytes instead of {file['bytes']}"
        elif verify and _described(folder / file["path"]) != file:
            damage = "has other content than when it was written"
        if damage:
            raise ValueError(f"The dense index {folder} is damaged: {file['path']} {damage}. Build or copy it again.")
    return manifest
