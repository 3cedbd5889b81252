# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""BM25: an index in shards, written in one stream, memory-mapped, searched on all cores."""

from .index import BM25Index, merge_top_k


__all__ = ["BM25Index", "merge_top_k"]
