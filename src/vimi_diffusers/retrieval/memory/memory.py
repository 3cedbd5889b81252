# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A memory of image-text pairs: built as a stream, opened lazily, extended, shared, searched by prompt."""

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..bm25 import BM25Index
from ..pairs import ImageTextPair, StoredImage
from ..recipe import RetrievalRecipe
from . import building, storage
from .indexing import index_names
from .lookup import Lookup, codes_of
from .searching import Search, Wanted
from .shards import PairReader
from .sources import dataset_rows, folder_rows


if TYPE_CHECKING:
    import datasets

    from ..retriever import Retriever


class ImageTextMemory:
    """
    Image-text pairs that a prompt retrieves (paper section 1.2).

    Pairs lie in parquet shards and are read when they are asked for; nothing that grows with their number is held in
    memory. Make one with [`~ImageTextMemory.create`], [`~ImageTextMemory.from_folder`] or
    [`~ImageTextMemory.from_dataset`]; open one with [`~ImageTextMemory.load`] or
    [`~ImageTextMemory.from_pretrained`]. `len(memory)` is the number of pairs; `memory[3]` and `memory["some id"]` are
    pairs, `"some id" in memory` tells whether there is one.

    Attributes:
        recipe ([`RetrievalRecipe`]): What is indexed and how it is ranked.
        num_dropped (`int`): Pairs that were left out at build because their text was empty or their image bad.
    """

    def __init__(self, folder: Path, mmap: bool = True, verify: bool | None = None, remote: Any = None):
        self._folder, self._mmap, self._remote = folder.absolute(), mmap, remote
        self._open(verify)

    def _open(self, verify: bool | None) -> None:
        folder = self._folder
        self._manifest = manifest = storage.Manifest.read(folder)
        with storage.naming_damage(folder):
            verify = manifest.check_files(folder, verify, with_shards=self._remote is None)
            self.recipe = RetrievalRecipe.from_dict(manifest.recipe)
            self.num_dropped = manifest.num_dropped
            indexes = {
                name: BM25Index.load(folder / manifest.index / name, mmap=self._mmap, verify=verify)
                for name in index_names(self.recipe)
            }
            for name, index in indexes.items():
                expected = manifest.kinds.get(name.rpartition(".")[0], len(self))
                if len(index) != expected:
                    raise ValueError(f"the index {name} has {len(index)} entries where {expected} belong")
            self._reader = PairReader(
                manifest.shards, self._remote or storage.ShardFiles(folder, manifest.shards, self._mmap)
            )
            self._lookup = Lookup(folder / "lookup", manifest.segments, self._reader, codes_of(self.recipe))
            self._search = Search(self.recipe, self._reader, self._lookup, indexes)

    def __reduce__(self) -> tuple:
        """For other processes, which open the files themselves."""
        return type(self), (self._folder, self._mmap, False, self._remote)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike,
        rows: Iterable[Mapping[str, Any]],
        recipe: RetrievalRecipe | None = None,
        bad_images: Literal["raise", "drop", "keep"] = "raise",
    ) -> "ImageTextMemory":
        """
        Build a memory from a stream of rows, each of which is held once, so that there may be any number of them.

        The folder appears whole or not at all; a memory that was there is replaced. Pairs with an empty text could
        never be found: they are dropped, counted in `num_dropped` and reported in the log.

        Args:
            folder (`str` or `os.PathLike`):
                Where the memory goes.
            rows (`Iterable[Mapping[str, Any]]`):
                Pairs with `id` (unique), `text` and `image`, optionally `kind`, and anything else that JSON can hold,
                which becomes the pair's metadata. An image is given as encoded bytes, as a path, as
                `{"bytes": ..., "path": ...}` or as a `PIL.Image.Image`, which is stored as PNG.
            recipe ([`RetrievalRecipe`], *optional*):
                What to index and how to rank. Defaults to two searches, place first, if all pairs are of kind
                `"subject"` or `"place"`, else to one index over the texts.
            bad_images (`str`, *optional*, defaults to `"raise"`):
                What to do with images that cannot be decoded: `"raise"` an error, `"drop"` the pair and count it, or
                `"keep"` all without a look at them, which saves most of the time.

        Raises:
            `ValueError`: if a row or an id cannot be used, or nothing is left.
            `FileExistsError`: if the folder holds something that is not a memory.

        Example:
            ```python
            >>> rows = ({"id": path.name, "text": path.stem, "image": path} for path in Path("pictures").glob("*.jpg"))
            >>> memory = ImageTextMemory.create("my_memory", rows)
            ```
        """
        building.create_memory(Path(folder), rows, recipe, bad_images)
        return cls(Path(folder), verify=False)

    @classmethod
    def _create_temporary(cls, rows: Iterable[Mapping[str, Any]], recipe: RetrievalRecipe | None) -> "ImageTextMemory":
        folder = Path(tempfile.mkdtemp(prefix="vimi-memory-"))
        try:
            building.create_memory(folder / "memory", rows, recipe, "raise")
            memory = cls(folder / "memory", verify=False)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(memory, shutil.rmtree, folder, ignore_errors=True)
        return memory

    @classmethod
    def from_folder(cls, path: str | os.PathLike, recipe: RetrievalRecipe | None = None) -> "ImageTextMemory":
        """
        Build a memory from a folder of images with a `metadata.jsonl`, as the Hugging Face image folder has it.

        Each line is an object with `file_name` (path below the folder) and `text`; optionally `id` (defaults to
        `file_name`), `kind`, and anything else, which becomes the pair's metadata.

        The memory lies in a temporary folder, and goes when it is no longer used: [`~ImageTextMemory.save`] keeps it.

        Args:
            path (`str` or `os.PathLike`):
                The folder.
            recipe ([`RetrievalRecipe`], *optional*):
                As in [`~ImageTextMemory.create`].

        Raises:
            `FileNotFoundError`: if the folder, its `metadata.jsonl` or an image is missing.
            `ValueError`: if a line, an image or an id cannot be used, or nothing is left.
        """
        return cls._create_temporary(folder_rows(Path(path)), recipe)

    @classmethod
    def from_dataset(
        cls,
        dataset: "datasets.Dataset | datasets.IterableDataset",
        image_column: str = "image",
        text_column: str = "text",
        id_column: str | None = None,
        recipe: RetrievalRecipe | None = None,
    ) -> "ImageTextMemory":
        """
        Build a memory from a data set of the `datasets` library. A `kind` column is the pairs' kind; further columns
        become metadata. Images are kept as they are encoded in the data set.

        The memory lies in a temporary folder, and goes when it is no longer used: [`~ImageTextMemory.save`] keeps it.

        Args:
            dataset (`datasets.Dataset` or `datasets.IterableDataset`):
                One split.
            image_column (`str`, *optional*, defaults to `"image"`):
                Column of type `datasets.Image`.
            text_column (`str`, *optional*, defaults to `"text"`):
                Column with the captions.
            id_column (`str`, *optional*):
                Column with unique ids. Defaults to the row number.
            recipe ([`RetrievalRecipe`], *optional*):
                As in [`~ImageTextMemory.create`].

        Raises:
            `ValueError`: if a column is missing or of another type, or an image or an id cannot be used.
        """
        return cls._create_temporary(dataset_rows(dataset, image_column, text_column, id_column), recipe)

    def add(self, rows: Iterable[Mapping[str, Any]], bad_images: Literal["raise", "drop", "keep"] = "raise") -> int:
        """
        Append pairs, whole or not at all: new shards, and indexes as if all pairs had been there from the start. Add
        many at once, since each call makes files of its own. Readers of the memory as it was go on working.

        Args:
            rows (`Iterable[Mapping[str, Any]]`):
                As in [`~ImageTextMemory.create`]; with ids that the memory does not have, and kinds of its recipe.
            bad_images (`str`, *optional*, defaults to `"raise"`):
                As in [`~ImageTextMemory.create`].

        Returns:
            `int`: how many pairs were added.

        Raises:
            `ValueError`: if a row or an id cannot be used, the pairs are on the Hub, or another process is adding.
        """
        self._check_local()
        if (self._folder / storage.MANIFEST).is_symlink():
            raise ValueError(
                f"{self._folder} is the Hub's cache: save the memory to a folder of your own to add pairs."
            )
        added = building.add_rows(self._folder, rows, bad_images)
        self._open(verify=False)
        return added

    def save(self, path: str | os.PathLike) -> None:
        """
        Write a copy of the memory into a folder, which appears whole or not at all; a memory that was there is
        replaced.

        Raises:
            `FileExistsError`: if the path holds something that is not a memory.
            `ValueError`: if the pairs are on the Hub.
        """
        self._check_local()
        if Path(path).absolute() == self._folder:
            return
        with storage.whole_memory(Path(path)) as new:
            for file in self._manifest.files(self._folder):
                (new / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._folder / file, new / file)
            self._manifest.write(new)

    @classmethod
    def load(cls, path: str | os.PathLike, mmap: bool = True, verify: bool | None = None) -> "ImageTextMemory":
        """
        Open a saved memory. Pairs are read when they are asked for, and checked by then.

        Args:
            path (`str` or `os.PathLike`):
                Folder that [`~ImageTextMemory.save`] or [`~ImageTextMemory.create`] wrote.
            mmap (`bool`, *optional*, defaults to `True`):
                Map indexes and shards from disk. Without it indexes are read into memory, shards by plain file reads.
            verify (`bool`, *optional*):
                Compare the files' hashes with the manifest, which reads them once. Sizes are compared in any case.
                Defaults to doing so for memories of up to 64 MiB.

        Raises:
            `FileNotFoundError`: if there is no such folder.
            `ValueError`: if the folder is not a memory, is damaged, or was written in another format version.
        """
        return cls(Path(path), mmap, verify)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        images: Literal["download", "remote"] = "download",
    ) -> "ImageTextMemory":
        """
        Open a memory from a folder, or from the Hub by the name of its data set.

        Args:
            name_or_path (`str` or `os.PathLike`):
                Folder of a memory, or a name such as `"user/memory"`.
            revision (`str`, *optional*):
                Branch, tag or commit on the Hub. Defaults to `"main"`.
            token (`str` or `bool`, *optional*):
                For private data sets. Defaults to that of `hf auth login`.
            cache_dir (`str` or `os.PathLike`, *optional*):
                Where downloads are kept. Defaults to the cache of `huggingface_hub`.
            local_files_only (`bool`, *optional*, defaults to `False`):
                Ask the Hub for nothing, use what was downloaded before.
            images (`str`, *optional*, defaults to `"download"`):
                `"download"` the pairs, or leave them `"remote"`: then the indexes alone are downloaded, and of the
                pairs about a hundred at a time, texts and images apart, when one of them is asked for.

        Raises:
            `OSError`: if the data set or its revision is not there, is private, or cannot be reached.
            `ValueError`: if it is no memory, or an argument cannot be used.
        """
        from . import hub

        if images not in ("download", "remote"):
            raise ValueError(f'`images` is "download" or "remote", not {images!r}.')
        if Path(name_or_path).is_dir():
            return cls.load(name_or_path)
        if images == "remote" and local_files_only:
            raise ValueError('`images="remote"` needs the Hub: leave out `local_files_only`.')
        name = str(name_or_path)
        folder = hub.fetch(name, revision, token, cache_dir, local_files_only, with_shards=images == "download")
        return cls(folder, remote=None if images == "download" else hub.RemoteShards(name, folder.name, token))

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        license: str = "unknown",
    ) -> str:
        """
        Share the memory as a data set on the Hub, where the viewer shows its pairs, with a card. What the data set
        held of an older memory is removed; a card that someone wrote or edited stays.

        Args:
            repo_id (`str`):
                Name such as `"user/memory"`; it is made if it is not there.
            private (`bool`, *optional*):
                Whether a new data set is private.
            token (`str` or `bool`, *optional*):
                Defaults to that of `hf auth login`.
            revision (`str`, *optional*):
                Branch to push to; it is made if it is not there. Defaults to `"main"`.
            commit_message (`str`, *optional*):
                Defaults to one with the number of pairs.
            license (`str`, *optional*, defaults to `"unknown"`):
                The Hub's identifier of the pairs' licence, for the card.

        Returns:
            `str`: address of the data set.
        """
        from . import hub

        self._check_local()
        return hub.push(self._folder, self._manifest, repo_id, private, token, revision, commit_message, license)

    def _check_local(self) -> None:
        if self._remote is not None:
            raise ValueError(
                f'The pairs of this memory are on the Hub: open it with `from_pretrained("{self._remote.repo_id}")`, '
                "which downloads them."
            )

    def __len__(self) -> int:
        return self._manifest.num_pairs

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._lookup.row_of(id) is not None

    def __getitem__(self, key: int | str) -> ImageTextPair:
        if isinstance(key, str):
            row = self._lookup.row_of(key)
            if row is None:
                raise KeyError(f"The memory has no pair {key!r}.")
            return self._pair(row)
        if not -len(self) <= key < len(self):
            raise IndexError(f"Pair {key} of a memory of {len(self)} pairs.")
        return self._pair(int(key) % len(self))

    def __iter__(self) -> Iterator[ImageTextPair]:
        return (self._pair(row) for row in range(len(self)))

    def __repr__(self) -> str:
        kinds = "".join(f", {count} of kind {kind!r}" for kind, count in self._manifest.kinds.items())
        return f"ImageTextMemory({len(self)} pairs{kinds})"

    @property
    def ids(self) -> list[str]:
        """The ids of all pairs, in order. They are read anew each time."""
        return [id for (id,) in self._reader.scan(["id"])]

    def info(self) -> dict[str, Any]:
        """What the memory holds and how it is searched, by name, for people to read."""
        manifest, recipe = self._manifest, self.recipe
        return {
            "pairs": len(self),
            **{f"of kind {kind}": count for kind, count in manifest.kinds.items()},
            "dropped at build": self.num_dropped,
            "indexed": ", ".join(f"{field.name} (weight {field.weight:g})" for field in recipe.fields),
            "one pair for each": recipe.group_by or "pair",
            "BM25": f"k1 {recipe.k1:g}, b {recipe.b:g}",
            "shards": len(manifest.shards),
            "bytes of shards": sum(shard.bytes for shard in manifest.shards),
        }

    def texts(self) -> Iterator[str]:
        """The texts of all pairs, in order, as a stream."""
        return (text for (text,) in self._reader.scan(["text"]))

    def take(self, rows: Sequence[int]) -> list[ImageTextPair]:
        """
        The pairs of the given rows, in their order.

        Raises:
            `IndexError`: if a row is none of the memory's.
        """
        return [self[int(row)] for row in rows]

    def _pair(self, row: int, score: float | None = None) -> ImageTextPair:
        caption = self._reader.caption(row)
        return ImageTextPair(
            id=caption["id"],
            text=caption["text"],
            image=StoredImage(lambda: self._reader.image(row)),
            score=score,
            kind=caption["kind"],
            metadata=json.loads(caption["metadata"]),
        )

    def search(
        self,
        prompt: str,
        k: int | Mapping[str, int] = 1,
        *,
        exclude: Iterable[str] = (),
        prefer: Iterable[str] = (),
        retriever: "Retriever | None" = None,
    ) -> list[ImageTextPair]:
        """
        The pairs that match a prompt best.

        A pair is returned only if it shares a searched word with the prompt, so a prompt without a known word gets
        none, and there may be fewer than `k`. Pairs with the same score keep the memory's order. In a memory with
        kinds, of the pairs whose texts match best one that the prompt holds to the letter ("a thumbs up") comes first.

        Args:
            prompt (`str`):
                What to search for.
            k (`int` or `Mapping[str, int]`, *optional*, defaults to `1`):
                Number of pairs of each kind, for all kinds or by kind; in a memory without kinds, of all pairs.
            exclude (`Iterable[str]`, *optional*):
                Ids of pairs not to return, such as the drawing that a training sample is made of.
            prefer (`Iterable[str]`, *optional*):
                Ids of pairs to return in place of others of the same group (the recipe's `group_by`). Without it the
                first pair of a group stands for it.
            retriever ([`Retriever`], *optional*):
                What ranks the pairs in place of the memory's BM25; its document number n is pair number n. In a memory
                with kinds it is asked for the first kind with what stands before the recipe's first cue, for the
                others with what follows, and with the whole prompt if there is no cue.

        Returns:
            `list[ImageTextPair]`: with their scores, kind by kind in the recipe's order, best first in each.

        Raises:
            `ValueError`: if the prompt is not a string, `k` is not a count, an id is not in the memory, or the
                retriever is of other pairs.
        """
        if not isinstance(prompt, str):
            raise ValueError(f"A prompt is a string, not {type(prompt).__name__}: use search_batch for several.")
        return self.search_batch([prompt], k, exclude=[exclude], prefer=[prefer], retriever=retriever)[0]

    def search_batch(
        self,
        prompts: Sequence[str],
        k: int | Mapping[str, int] = 1,
        *,
        exclude: Sequence[Iterable[str]] | None = None,
        prefer: Sequence[Iterable[str]] | None = None,
        retriever: "Retriever | None" = None,
    ) -> list[list[ImageTextPair]]:
        """
        [`~ImageTextMemory.search`] for several prompts; `exclude` and `prefer` hold one list of ids for each prompt.
        A memory without kinds is searched on all cores, and a retriever is asked for all prompts at once.

        Raises:
            `ValueError`: if the lists differ in length, or as `search` does.
        """
        if isinstance(prompts, str):
            raise ValueError("search_batch takes a list of prompts: use search for a single string.")
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise ValueError(f"A prompt is a string, not {type(prompt).__name__}.")
        for name, ids in (("exclude", exclude), ("prefer", prefer)):
            if ids is not None and (isinstance(ids, str) or len(ids) != len(prompts)):
                raise ValueError(f"`{name}` must hold one list of ids for each of the {len(prompts)} prompts.")
        if retriever is not None and len(retriever) != len(self):
            raise ValueError(
                f"The retriever has {len(retriever)} documents, the memory {len(self)} pairs: build it anew."
            )
        counts = self._search.counts(k)
        wanted = [
            Wanted(counts, self._search.rows(own_exclude, "exclude"), self._search.rows(own_prefer, "prefer"))
            for own_exclude, own_prefer in zip(exclude or [()] * len(prompts), prefer or [()] * len(prompts))
        ]
        found = self._search.batch(prompts, wanted, retriever)
        return [[self._pair(row, score) for row, score in rows] for rows in found]
