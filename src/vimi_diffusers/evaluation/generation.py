# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The videos of a protocol: sharded over processes, resumable, one seed for each sample."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import replacing
from ..media import to_uint8
from .sources import EvaluationSample, SampleSet


if TYPE_CHECKING:
    from ..retrieval import ImageTextMemory
    from ..vimi.pipeline_vimi import VIMIPipeline
    from .protocols import Protocol

Report = Callable[[str, int, int], None]
SETTINGS, MANIFEST, JOURNAL, SAMPLES = "settings.json", "manifest.jsonl", "journal", "samples"


@dataclasses.dataclass(frozen=True)
class GeneratedSample:
    """
    What the manifest says of a video.

    Args:
        id (`str`): The sample.
        file (`str`): Its file, relative to the folder.
        prompt (`str`): The prompt.
        seed (`int`): Seed of its noise.
        key (`str`): Hash of everything that the pipeline was given for it.
        sha256 (`str`): Hash of the file.
        bytes (`int`): Length of the file.
        retrieved (`list[str]`): Ids of the pairs that were retrieved.
    """

    id: str
    file: str
    prompt: str
    seed: int
    key: str
    sha256: str
    bytes: int
    retrieved: tuple[str, ...] = ()


def generate_samples(
    protocol: "Protocol",
    pipe: "VIMIPipeline",
    samples: SampleSet,
    out: str | Path,
    memory: "ImageTextMemory | None" = None,
    batch_size: int = 1,
    state: Any = None,
    report: Report = lambda *_: None,
    weights: Mapping[str, str] | None = None,
) -> list[GeneratedSample]:
    """
    Generates what is missing of a protocol's videos. Each is a lossless file (H.264 in RGB) that appears whole or not
    at all, in `samples/`; `manifest.jsonl` names them with prompt, seed and SHA-256. Finished ones are kept when it
    is called again with the same settings.

    A sample's noise depends on its seed alone. Batches are made before they are dealt out to the processes, and one
    that lacks a sample is generated wholly, so neither the number of processes nor an interruption changes a file;
    another batch size changes how sums are rounded on the way.

    Args:
        protocol ([`Protocol`]): Sizes and sampler.
        pipe ([`VIMIPipeline`]): The weights, on their device.
        samples ([`SampleSet`]): What to generate.
        out (`str` or `Path`): Folder of the videos, shared by all processes.
        memory ([`ImageTextMemory`], *optional*): Where the protocol's retrieved pairs are from.
        batch_size (`int`, *optional*, defaults to `1`): Videos that are generated together.
        state (`accelerate.PartialState`, *optional*): The processes; those of the environment by default.
        report (`Callable`, *optional*): Called as `report("videos", done, total)` with this process's part.
        weights (`Mapping[str, str]`, *optional*): [`weights_hashes`] of the pipeline, where they are known.

    Returns:
        `list[GeneratedSample]`: the manifest, in the order of the samples; the same in every process.

    Raises:
        `ValueError`: If the folder holds videos of other settings, naming what differs, or a size or the memory does
            not fit.
    """
    state = state or _default_state()
    out = Path(out)
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if protocol.retrieved_pairs and memory is None:
        raise ValueError(f"Protocol {protocol.name!r} retrieves pairs: give a memory, or change retrieved_pairs to 0.")
    pipe._check_sizes(protocol.num_frames, *protocol.size)
    samples.bind(pipe)
    settings = _settings(protocol, weights or weights_hashes(pipe), memory)
    error = _prepare(out, settings) if state.is_main_process else None
    state.wait_for_everyone()
    if not state.is_main_process:
        error = _different(out, settings)
    if error:
        raise ValueError(error)

    generator = _Generator(protocol, pipe, samples, out, memory, settings)
    batches = _batches(samples.samples, batch_size)
    own = batches[state.process_index :: state.num_processes]
    finished = read_manifest(out)
    total, done = sum(map(len, own)), 0
    state.wait_for_everyone()  # journals of before are read before anything is added
    with open(out / JOURNAL / f"{state.process_index:05d}.jsonl", "a", encoding="utf-8") as journal:
        journal.write("\n")  # ends a line that an interruption cut off
        for batch in own:
            generator.finish(batch, finished, journal)
            done += len(batch)
            report("videos", done, total)
    state.wait_for_everyone()
    if state.is_main_process:
        _merge_journals(out, [sample.id for sample in samples.samples])
    state.wait_for_everyone()
    made = read_manifest(out)
    return [made[sample.id] for sample in samples.samples]


def read_manifest(out: Path) -> dict[str, GeneratedSample]:
    """What is finished in a folder of videos, by id; a line that an interruption cut off counts for nothing."""
    made = {}
    for path in (out / MANIFEST, *sorted((out / JOURNAL).glob("*.jsonl"))):
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    values = json.loads(line)
                    values["retrieved"] = tuple(values["retrieved"])
                    made[values["id"]] = GeneratedSample(**values)
                except (ValueError, TypeError, KeyError):
                    continue
    return made


def weights_hashes(pipe: "VIMIPipeline") -> dict[str, str]:
    """SHA-256 of the weights of each of a pipeline's networks, in the precision in which they run."""
    import torch

    from .metrics.extractor import weights_sha256

    networks = {name: one for name, one in pipe.components.items() if isinstance(one, torch.nn.Module)}
    return {name: weights_sha256(network) for name, network in sorted(networks.items())}


class _Generator:
    """Makes the videos of a batch and writes those that are missing."""

    def __init__(
        self,
        protocol: "Protocol",
        pipe: "VIMIPipeline",
        samples: SampleSet,
        out: Path,
        memory: "ImageTextMemory | None",
        settings: Mapping[str, Any],
    ):
        self.protocol, self.pipe, self.samples, self.out, self.memory = protocol, pipe, samples, out, memory
        self.settings_sha256 = _sha256(settings)

    def finish(self, batch: Sequence[EvaluationSample], finished: Mapping[str, GeneratedSample], journal: Any) -> None:
        keys = [self._key(sample) for sample in batch]
        missing = []
        for sample, key in zip(batch, keys):
            made = finished.get(sample.id)
            if made is None or not self._is_whole(made):
                missing.append(sample.id)
            elif made.key != key:
                raise ValueError(
                    f"{self.out / made.file} was made from another prompt, seed or image than sample {sample.id!r} "
                    "has now: choose another folder, or remove it."
                )
        if not missing:
            return
        inputs, retrieved = self._inputs(batch)
        for sample, key, video, pairs in zip(batch, keys, self._videos(batch, inputs), retrieved):
            if sample.id in missing:
                file = self.out / SAMPLES / f"{sample.id}.mp4"
                write_lossless(video, file, self.protocol.fps)
                data = file.read_bytes()
                sha256 = hashlib.sha256(data).hexdigest()
                name = f"{SAMPLES}/{file.name}"
                made = GeneratedSample(sample.id, name, sample.prompt, sample.seed, key, sha256, len(data), pairs)
                journal.write(json.dumps(dataclasses.asdict(made), ensure_ascii=False) + "\n")
                journal.flush()
                os.fsync(journal.fileno())

    def _is_whole(self, made: GeneratedSample) -> bool:
        path = self.out / made.file
        return path.is_file() and path.stat().st_size == made.bytes

    def _key(self, sample: EvaluationSample) -> str:
        told = [sample.prompt, sample.task, sample.seed, self.samples.fingerprint(sample)]
        return _sha256([self.settings_sha256, *told])

    def _inputs(self, batch: Sequence[EvaluationSample]) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
        inputs = self.samples.pipeline_inputs(batch)
        retrieved: list[tuple[str, ...]] = [()] * len(batch)
        if self.protocol.retrieved_pairs and not inputs.get("context"):
            pairs = self.memory.search_batch([sample.prompt for sample in batch], k=self.protocol.retrieved_pairs)
            pairs = [own if sample.task == "text-to-video" else [] for own, sample in zip(pairs, batch)]
            inputs["context"] = pairs
            retrieved = [tuple(pair.id for pair in own) for own in pairs]
        return inputs, retrieved

    def _videos(self, batch: Sequence[EvaluationSample], inputs: dict[str, Any]) -> np.ndarray:
        import torch

        from ..vimi.guidance import default_guidance

        protocol, sampling = self.protocol, self.protocol.sampling
        height, width = protocol.size
        guidance = {name: getattr(sampling, name) for name in ("guidance_scale", "image_guidance_scale")}
        guidance = {name: value for name, value in guidance.items() if value is not None}
        videos: dict[int, np.ndarray] = {}
        shows = [
            bool(inputs["images"][n] or (inputs.get("context") or [()] * len(batch))[n]) for n in range(len(batch))
        ]
        for kind in (True, False):  # guidance differs where images are shown
            places = [place for place, shown in enumerate(shows) if shown is kind]
            if not places:
                continue
            frames = self.pipe(
                **{name: [values[place] for place in places] for name, values in inputs.items() if values is not None},
                height=height,
                width=width,
                num_frames=protocol.num_frames,
                fps=protocol.fps,
                num_inference_steps=sampling.num_inference_steps,
                original_size=sampling.original_size,
                # on the CPU, so that noise is the same on every device
                generator=[torch.Generator().manual_seed(batch[place].seed) for place in places],
                **(guidance or default_guidance(kind)),
            ).frames
            videos |= zip(places, frames)
        return np.stack([videos[place] for place in range(len(batch))])


def write_lossless(frames: np.ndarray, path: str | Path, fps: float) -> None:
    """
    Writes an mp4 (H.264 in RGB, lossless) whole or not at all; [`VideoFiles`] reads the same bytes back.

    Args:
        frames (`np.ndarray` of shape `(frames, height, width, 3)`): Float in [0, 1] or uint8.
        path (`str` or `Path`): The file.
        fps (`float`): Frames per second.
    """
    import imageio_ffmpeg

    frames = to_uint8(frames)
    # One thread and no version strings: the bytes depend on the frames alone.
    lossless = ["-qp", "0", "-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    options = {"codec": "libx264rgb", "pix_fmt_out": "rgb24", "quality": None, "macro_block_size": 1}
    with replacing(Path(path)) as temporary:
        size = frames.shape[2], frames.shape[1]
        writer = imageio_ffmpeg.write_frames(temporary, size, fps=fps, output_params=lossless, **options)
        try:
            writer.send(None)
            for frame in frames:
                writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()


# ------------------------------------------------------------------ settings
def _settings(protocol: "Protocol", weights: Mapping[str, str], memory: "ImageTextMemory | None") -> dict[str, Any]:
    settings = protocol.to_dict()
    names = ("size", "num_frames", "fps", "sampling", "seed", "retrieved_pairs")
    return {
        **{name: settings[name] for name in names},
        "weights": dict(weights),
        "memory": memory_fingerprint(memory) if protocol.retrieved_pairs else None,
    }


def memory_fingerprint(memory: "ImageTextMemory") -> str:
    """SHA-256 of a memory's ids and texts, in order."""
    digest = hashlib.sha256()
    for id, text in zip(memory.ids, memory.texts()):
        digest.update(f"{id}\0{text}\0".encode())
    return digest.hexdigest()


def _prepare(out: Path, settings: Mapping[str, Any]) -> str | None:
    for folder in (SAMPLES, JOURNAL):
        (out / folder).mkdir(parents=True, exist_ok=True)
    if (out / SETTINGS).is_file():
        return _different(out, settings)
    with replacing(out / SETTINGS) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return None


def _different(out: Path, settings: Mapping[str, Any]) -> str | None:
    from .protocols import _flat

    before = _flat(json.loads((out / SETTINGS).read_text(encoding="utf-8")))
    now = _flat(settings)
    differs = [
        f"{key} ({before.get(key)}, not {now.get(key)})" for key in before | now if before.get(key) != now.get(key)
    ]
    if not differs:
        return None
    return f"{out} holds videos of other settings: {', '.join(differs)}. Choose another folder, or remove it."


def _batches(samples: Sequence[EvaluationSample], batch_size: int) -> list[list[EvaluationSample]]:
    return [list(samples[start : start + batch_size]) for start in range(0, len(samples), batch_size)]


def _merge_journals(out: Path, order: Sequence[str]) -> None:
    made = read_manifest(out)
    with replacing(out / MANIFEST) as temporary:
        lines = (json.dumps(dataclasses.asdict(made[id]), ensure_ascii=False) + "\n" for id in order)
        temporary.write_text("".join(lines), encoding="utf-8")
    for journal in (out / JOURNAL).glob("*.jsonl"):
        journal.unlink()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _default_state() -> Any:
    from accelerate import PartialState

    return PartialState()
