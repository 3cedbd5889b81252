"""Retrieval: a memory of image-text pairs, and the BM25 search that finds a prompt's pairs (paper section 1.2)."""

from .bm25 import BM25Field, BM25Index, RetrievalRecipe, tokenize
from .memory import ImageTextMemory
from .pairs import ImageTextPair


__all__ = ["BM25Field", "BM25Index", "ImageTextMemory", "ImageTextPair", "RetrievalRecipe", "tokenize"]
