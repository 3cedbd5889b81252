# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A memory as a data set on the Hub: fetched whole or but for its pairs, pushed with a card."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, HfFileSystem, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .card import CARD, is_own_card, memory_card
from .shards import Shard, naming_shard
from .storage import MANIFEST, Manifest, is_memory


_FILES_PER_COMMIT = 100  # more are sent in several commits, and the manifest in a last one
_FOLDERS = ("data/*", "lookup/*", "index/*")


@dataclass(frozen=True)
class RemoteShards:
    """
    Opens shards on the Hub, of which only what is asked for is transferred.

    Args:
        repo_id (`str`): The data set.
        revision (`str`): Its commit, so that what is read later fits what was read before.
        token (`str` or `bool`, *optional*): As in [`~ImageTextMemory.from_pretrained`].
    """

    repo_id: str
    revision: str
    token: str | bool | None = None

    def __call__(self, shard: Shard) -> Any:
        path = f"datasets/{self.repo_id}@{self.revision}/{shard.path}"
        files = HfFileSystem(endpoint=constants.ENDPOINT, token=self.token)
        with naming_shard(shard):
            try:
                return files.open(path, "rb", size=shard.bytes, cache_type="none")  # parquet knows the ranges it needs
            except OSError:
                files.invalidate_cache()  # it would remember the failure
                raise


def fetch(
    repo_id: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    with_shards: bool,
) -> Path:
    """
    The folder of a memory from the Hub, or from the cache if the Hub knows of no newer one or cannot be asked.

    Raises:
        `OSError`: if it cannot be had.
        `ValueError`: if it is no memory.
    """
    if repo_id.count("/") > 1 or repo_id.startswith((".", "/")):  # the name of a data set has one slash at most
        raise FileNotFoundError(
            f"There is no memory at {repo_id}: build one with `vimi memory build SOURCE {repo_id}`."
        )
    patterns = [MANIFEST, CARD, *(_FOLDERS if with_shards else _FOLDERS[1:])]
    with naming_trouble(repo_id, revision):
        folder = Path(
            snapshot_download(
                repo_id,
                repo_type="dataset",
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=patterns,
            )
        )
    if not is_memory(folder):
        raise ValueError(f"The data set {repo_id} on the Hub is no memory: it has no memory's {MANIFEST}.")
    return folder


def push(
    folder: Path,
    manifest: Manifest,
    repo_id: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    commit_message: str | None,
    license: str,
) -> str:
    """
    Make a data set on the Hub hold a memory and nothing of an older one. A card that someone wrote or edited stays.

    Returns:
        `str`: address of the data set.
    """
    api = HfApi(token=token)
    message = commit_message or f"Memory of {manifest.num_pairs:,} image-text pairs"
    with naming_trouble(repo_id, revision), tempfile.TemporaryDirectory() as temporary:
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
        staged = Path(temporary)
        files = manifest.files(folder)
        for path in files:
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            (staged / path).symlink_to((folder / path).resolve())
        card = _own_or_older_card(api, folder, repo_id, revision)
        if card is None:
            (staged / CARD).write_text(memory_card(manifest, repo_id, license), encoding="utf-8")
        elif (folder / CARD).is_file():
            (staged / CARD).write_text(card, encoding="utf-8")
        where = {"repo_id": repo_id, "repo_type": "dataset", "folder_path": staged, "revision": revision}
        if len(files) > _FILES_PER_COMMIT:
            api.upload_folder(**where, commit_message=f"{message}: files", ignore_patterns=[MANIFEST, CARD])
        api.upload_folder(**where, commit_message=message, delete_patterns=list(_FOLDERS))
    return f"{constants.ENDPOINT}/datasets/{repo_id}"


def _own_or_older_card(api: HfApi, folder: Path, repo_id: str, revision: str | None) -> str | None:
    """The text of a card that is to stay: the folder's, or else the Hub's if someone has written it."""
    if (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8")
        return None if is_own_card(text) else text
    try:
        path = api.hf_hub_download(repo_id, CARD, repo_type="dataset", revision=revision)
    except EntryNotFoundError:
        return None
    text = Path(path).read_text(encoding="utf-8")
    return None if is_own_card(text) else text


@contextmanager
def naming_trouble(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub answers into one error that says what to do."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise OSError(f"The data set {repo_id} on the Hub has no revision {revision!r}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise OSError(
            f"There is no folder and no data set {repo_id!r} on the Hub, or it is private: check the name, and log in "
            "with `hf auth login` or pass a token."
        ) from error
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"The data set {repo_id} is not in the cache and the Hub cannot be asked for it: connect, or leave out "
            "`local_files_only` and HF_HUB_OFFLINE."
        ) from error
