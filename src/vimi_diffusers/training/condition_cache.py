# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A frozen conditioner's embedding C on disk, so that each prompt goes through the MLLM once."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.utils import logging
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence

from ..media import load_images
from ..vimi.mllm_conditioner import MLLMConditioner
from ..vimi.mllm_text import format_mllm_text


logger = logging.get_logger(__name__)

MANIFEST = {"kind": "vimi_diffusers condition cache", "version": 1}
MANIFEST_FILE = "manifest.json"
# of a configuration: what says where a model came from, not what it computes
UNUSED_CONFIG = ("_name_or_path", "_commit_hash", "architectures", "dtype", "transformers_version")


class ConditionCache:
    """
    Gives C for prompts, from disk where it is known and by one pass of the conditioner where it is not.

    An entry's key is the SHA-256 of the full text, its images' pixels and everything that decides what becomes of
    them: the conditioner's configuration and weights, the processor's files, the dtype, the version of transformers.
    A change of any of them gives other keys, so an entry is read for exactly what made it, and one folder can serve
    several models. Entries are written whole, by any number of processes.

    Args:
        folder (`str` or `Path`): Where entries are kept: a new or empty folder, or a cache.
        conditioner ([`MLLMConditioner`]):
            The model, frozen. Its weights are hashed at the first call, and again should they have changed since.
        processor (`ProcessorMixin`): Its text processor, which is not to be changed any more.
        dtype (`torch.dtype`, *optional*):
            Mixed precision: the dtype of autocast. By default the weights' own.

    Raises:
        ValueError: If the folder holds something else.
    """

    def __init__(
        self,
        folder: str | Path,
        conditioner: MLLMConditioner,
        processor: Any,
        dtype: torch.dtype | None = None,
    ):
        self.folder, self.conditioner, self.processor, self.dtype = Path(folder), conditioner, processor, dtype
        self.hits = self.misses = 0  # entries that were read, and computed
        self._processor_hash = hash_processor(processor)
        self._seen: tuple | None = None
        self._open_folder()

    def __call__(
        self, texts: Sequence[str], images: Sequence[Sequence[Any]], length: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            texts (`Sequence[str]`):
                Full texts, as `MultimodalPrompt.text`: with the processor's placeholder where images stand.
            images (`Sequence[Sequence[PIL.Image.Image | str | Path]]`): The images of each text.
            length (`int`, *optional*):
                Length to pad to, for steps of one shape. Defaults to the longest entry's.

        Returns:
            C of shape `(batch_size, length, output_dim)`, zero where padded (on the right), and the boolean mask of
            what counts, `(batch_size, length)`, on the conditioner's device.

        Raises:
            ValueError: If the conditioner trains or has adapters, texts and images differ in number, or an entry is
                longer than `length`.
        """
        if len(texts) != len(images) or not texts:
            raise ValueError(f"There are {len(texts)} texts for {len(images)} lists of images: give one for each.")
        chat = self.conditioner.config.crop_start > 0
        texts = [format_mllm_text(self.processor, text, chat) for text in texts]
        images = [load_images(own) for own in images]
        paths = self._paths(texts, images)
        rows = {path: self._read(path) for path in dict.fromkeys(paths)}
        missing = [path for path, row in rows.items() if row is None]
        self.hits += len(rows) - len(missing)
        self.misses += len(missing)
        if missing:
            numbers = [paths.index(path) for path in missing]
            computed = self._encode([texts[i] for i in numbers], [images[i] for i in numbers])
            for path, row in zip(missing, computed):
                self._write(path, row)
                rows[path] = row
        return self._batch([rows[path] for path in paths], length)

    # ------------------------------------------------------------------ keys
    def identity(self) -> str:
        """The SHA-256 of all that turns a text with images into C, as the conditioner is now."""
        model = self.conditioner
        config = _config(model.config.to_dict())
        tensors = [*model.parameters(), *model.buffers()]
        seen = (json.dumps(config, sort_keys=True, default=str), *((t.data_ptr(), t._version) for t in tensors))
        if seen != self._seen:
            if any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError(
                    "The conditioner trains, so its C changes with each step: freeze it, or use no cache."
                )
            if any(tensor.is_meta for tensor in tensors):
                raise ValueError(
                    "The conditioner is offloaded, so its weights cannot be hashed: load it on one device."
                )
            if any(".lora_" in name for name, _ in model.named_parameters()):
                raise ValueError(
                    "The conditioner has LoRA layers, which can be switched: merge them, or use no cache."
                )
            facts = {
                "config": config,
                "attention": sorted({str(module.config._attn_implementation) for module in _models(model)}),
                "weights": hash_weights(model),
                "processor": self._processor_hash,
                "dtype": str(self.dtype),
                "transformers": transformers.__version__,
                **MANIFEST,
            }
            text = json.dumps(facts, sort_keys=True, indent=1, default=str)
            self._identity, self._seen = hashlib.sha256(text.encode()).hexdigest(), seen
            home = self.folder / self._identity
            home.mkdir(exist_ok=True)
            _write_text(home / "identity.json", text)
        return self._identity

    def _paths(self, texts: list[str], images: list[list[Image.Image]]) -> list[Path]:
        identity, paths = self.identity(), []
        for text, own in zip(texts, images):
            pixels = [[image.size, hashlib.sha256(image.tobytes()).hexdigest()] for image in own]
            key = hashlib.sha256(json.dumps([identity, text, pixels]).encode()).hexdigest()
            paths.append(self.folder / identity / key[:2] / f"{key}.safetensors")
        return paths

    # ------------------------------------------------------------------ entries
    def _open_folder(self) -> None:
        manifest = self.folder / MANIFEST_FILE
        if not manifest.is_file():
            if self.folder.exists() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
                if not manifest.is_file():  # else another process has just made it
                    raise ValueError(f"{self.folder} holds other files: choose a new folder for the condition cache.")
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_text(manifest, json.dumps(MANIFEST))
        if (found := json.loads(manifest.read_text(encoding="utf-8"))) != MANIFEST:
            raise ValueError(f"{self.folder} is a cache of another kind, {found}: choose a new folder.")

    def _read(self, path: Path) -> torch.Tensor | None:
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() == {"key": path.stem}:
                    return file.get_tensor("condition")
                reason = "it belongs to another key"
        except FileNotFoundError:
            return None
        except SafetensorError as error:
            reason = error
        logger.warning(f"{path} is damaged ({reason}) and is made again.")
        return None

    def _write(self, path: Path, row: torch.Tensor) -> None:
        path.parent.mkdir(exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        os.close(handle)
        try:
            save_file({"condition": row}, partial, metadata={"key": path.stem})
            os.chmod(partial, 0o644)  # temporary files are private
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise

    # ------------------------------------------------------------------ the model
    @torch.no_grad()
    def _encode(self, texts: list[str], images: list[list[Image.Image]]) -> list[torch.Tensor]:
        """C of each text without padding, on the CPU."""
        model, training = self.conditioner, self.conditioner.training
        device = model.proj.weight.device
        inputs = self.processor(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(device)
        model.eval()
        mixed = torch.autocast(device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)
        with mixed, torch.compiler.set_stance("force_eager"):  # compiled for the loss's one shape, here there are many
            embeds = model(**inputs)
        model.train(training)
        mask = model.condition_mask(inputs["attention_mask"])
        return [row[own].contiguous() for row, own in zip(embeds.cpu(), mask.cpu())]

    def _batch(self, rows: list[torch.Tensor], length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        counts = torch.tensor([len(row) for row in rows])
        longest = int(counts.max())
        if length is not None and longest > length:
            raise ValueError(f"A prompt gives {longest} tokens of C, over the {length} of a batch: cut its text.")
        embeds = pad_sequence(rows, batch_first=True)
        embeds = torch.nn.functional.pad(embeds, (0, 0, 0, (length or longest) - longest))
        mask = torch.arange(embeds.shape[1]) < counts[:, None]
        device = self.conditioner.proj.weight.device
        return embeds.to(device), mask.to(device)


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights with their names, shapes and dtypes; about a second for each GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_processor(processor: Any) -> str:
    """SHA-256 of a processor's classes and files, without what its calls leave in them."""
    parts = [type(part).__name__ for part in (processor, processor.image_processor, processor.tokenizer)]
    digest = hashlib.sha256(json.dumps(parts[:2]).encode())
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.*")}
    if "tokenizer.json" in files:
        # a fast tokenizer is this file, in which its last call's padding stands; the other says how it was loaded
        core = json.loads(files["tokenizer.json"])
        files["tokenizer.json"] = json.dumps({**core, "padding": None, "truncation": None}, sort_keys=True).encode()
        files.pop("tokenizer_config.json", None)
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _config(values: Any) -> Any:
    if isinstance(values, dict):
        return {str(key): _config(value) for key, value in values.items() if key not in UNUSED_CONFIG}
    return [_config(value) for value in values] if isinstance(values, (list, tuple)) else values


def _models(model: MLLMConditioner) -> list[transformers.PreTrainedModel]:
    return [module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)]


def _write_text(path: Path, text: str) -> None:
    handle, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(partial, 0o644)
    os.replace(partial, path)
