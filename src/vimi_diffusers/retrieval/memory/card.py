# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The README.md of a memory on the Hub: what it holds, how it is searched, how to load it."""

from typing import TYPE_CHECKING

from ..recipe import RetrievalRecipe


if TYPE_CHECKING:
    from .storage import Manifest


CARD = "README.md"
_MARK = "<!-- Written by vimi_diffusers, and written anew by a push. Remove this line to keep edits. -->"
_CARD = """\
---
license: {license}
tags:
- vimi
- retrieval
- image-text-pairs
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---

{mark}

# {name}

A memory of {pairs:,} image-text pairs{kinds}, for retrieval-augmented generation with
[VIMI](https://arxiv.org/abs/2407.06304).{dropped}

## How to load it

```python
from vimi_diffusers import ImageTextMemory

memory = ImageTextMemory.from_pretrained("{repo}")  # images="remote" leaves the images on the Hub
for pair in memory.search("A fox in the snow", k=4):
    print(pair.score, pair.text, pair.image.size)
```

The pairs alone, without the search:

```python
from datasets import load_dataset

pairs = load_dataset("{repo}", split="train")  # id, text, kind, metadata (JSON), image
```

## How it is searched

BM25 with `k1={k1:g}` and `b={b:g}`{searched}.

| indexed | weight |
| --- | --- |
{fields}

## Files

| path | what |
| --- | --- |
| `data/` | the pairs, {num_shards:,} parquet files of {gigabytes:.2f} GB |
| `lookup/` | where a pair is by its id{codes} |
| `{index}/` | BM25 indexes |
| `manifest.json` | what belongs to the memory, with sizes and hashes |

## Licence

`{license}`. The rights in images and texts are those of their sources: whoever shares a memory says which they are.
"""


def memory_card(manifest: "Manifest", repo_id: str, license: str) -> str:
    """The card of a memory that is pushed to a repository."""
    recipe = RetrievalRecipe.from_dict(manifest.recipe)
    kinds = ", ".join(f"{count:,} of kind `{kind}`" for kind, count in manifest.kinds.items())
    searched = [f"kinds {' and '.join(f'`{kind}`' for kind in recipe.kinds)} apart"] if recipe.kinds else []
    searched += [f"one pair for each `{recipe.group_by}`"] if recipe.group_by else []
    return _CARD.format(
        license=license,
        size=_size_category(manifest.num_pairs),
        mark=_MARK,
        name=repo_id.rpartition("/")[2],
        repo=repo_id,
        pairs=manifest.num_pairs,
        kinds=f" ({kinds})" if kinds else "",
        dropped=f" {manifest.num_dropped:,} without a text were left out." if manifest.num_dropped else "",
        k1=recipe.k1,
        b=recipe.b,
        searched=": " + ", ".join(searched) if searched else "",
        fields="\n".join(f"| `{field.name}` | {field.weight:g} |" for field in recipe.fields),
        num_shards=len(manifest.shards),
        gigabytes=sum(shard.bytes for shard in manifest.shards) / 1e9,
        codes=", of which kind and what it shows" if recipe.kinds or recipe.group_by else "",
        index=manifest.index,
    )


def is_own_card(text: str) -> bool:
    """Whether a card is one of this package that nobody claimed."""
    return _MARK in text


def _size_category(count: int) -> str:
    """The Hub's name for a number of rows."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    for exponent, name in enumerate(names, start=3):
        if count < 10**exponent:
            return f"n<{name}" if exponent == 3 else f"{names[exponent - 4]}<n<{name}"
    return "n>1T" if count >= 10**12 else f"{names[-1]}<n<10B" if count < 10**10 else "10B<n<100B"
