"""Retrieval: a memory of image-text pairs, and the BM25 search that finds a prompt's pairs (paper section 1.2)."""

from .bm25 import BM25Index, merge_top_k
from .memory import ImageTextMemory
from .pairs import ImageTextPair
from .recipe import BM25Field, RetrievalRecipe, tokenize


__all__ = ["BM25Field", "BM25Index", "ImageTextMemory", "ImageTextPair", "RetrievalRecipe", "merge_top_k", "tokenize"]
