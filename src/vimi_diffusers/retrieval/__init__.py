# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Retrieval: a memory of image-text pairs, and the searches that find a prompt's pairs (paper section 1.2)."""

from .bm25 import BM25Index, merge_top_k
from .dense import DenseRetriever
from .hybrid import DiverseRetriever, HybridRetriever, mmr
from .memory import ImageTextMemory, open_rows
from .pairs import ImageTextPair
from .recipe import BM25Field, RetrievalRecipe, tokenize
from .retriever import BM25Retriever, Retriever


__all__ = [
    "BM25Field",
    "BM25Index",
    "BM25Retriever",
    "DenseRetriever",
    "DiverseRetriever",
    "HybridRetriever",
    "ImageTextMemory",
    "ImageTextPair",
    "RetrievalRecipe",
    "Retriever",
    "merge_top_k",
    "mmr",
    "open_rows",
    "tokenize",
]
