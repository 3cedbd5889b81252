# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A whole evaluation: checks, generation, reading back, figures, result."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .generation import GeneratedSample, Report, generate_samples, weights_hashes
from .measures import Measure, Setting, load_extractors, measures, required_inputs
from .results import RESULTS, SAMPLE_TABLE, EvaluationResult, ShownSample, write_csv
from .sources import SampleSet


if TYPE_CHECKING:
    from ..vimi.pipeline_vimi import VIMIPipeline
    from .protocols import Protocol, View

GENERATED, STATISTICS = "generated", "statistics"
LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "accelerate", "av", "scipy")


def check_inputs(protocol: "Protocol", data: Mapping[str, Path]) -> None:
    """
    Raises:
        `ValueError`: If something that the protocol needs is not given, not there, or not known; all in one.
    """
    needed = required_inputs(protocol)
    optional = {"split_list", "memory"}
    if missing := [f"{name} ({about})" for name, about in needed.items() if name not in data]:
        raise ValueError(f"Protocol {protocol.name!r} needs --data NAME=PATH for {'; '.join(missing)}.")
    if absent := [f"{name}: {path}" for name, path in data.items() if not Path(path).exists()]:
        raise FileNotFoundError(f"There is nothing at the path of {', '.join(absent)}.")
    if unknown := [name for name in data if name not in needed and name not in optional]:
        raise ValueError(f"Protocol {protocol.name!r} takes no data {', '.join(unknown)}: {', '.join(needed)}.")


def evaluate(
    protocol: "Protocol",
    load_pipeline: Callable[[], "VIMIPipeline"],
    out: str | Path,
    data: Mapping[str, Path] | None = None,
    model: str = "",
    batch_size: int = 1,
    device: str = "cpu",
    shown: int = 12,
    state: Any = None,
    report: Report = lambda *_: None,
) -> EvaluationResult:
    """
    Generates a protocol's videos in `out/generated`, measures them, and writes `results.json`, `results.csv` and
    `samples.csv` (figures of single videos). Everything that is needed is checked before the pipeline is loaded.

    Args:
        protocol ([`Protocol`]): What to do.
        load_pipeline (`Callable[[], VIMIPipeline]`): Called when all else is there.
        out (`str` or `Path`): The folder; videos in it of the same settings are kept.
        data (`Mapping[str, Path]`, *optional*): The user's data sets and files by name, see [`required_inputs`].
        model (`str`, *optional*): What results call the weights.
        batch_size (`int`, *optional*, defaults to `1`): Videos that are generated, and read, together.
        device (`str`, *optional*, defaults to `"cpu"`): Where feature networks run.
        shown (`int`, *optional*, defaults to `12`): Videos of the report.
        state (`accelerate.PartialState`, *optional*): The processes; those of the environment by default.
        report (`Callable`, *optional*): Called as `report(stage, done, total)`.

    Raises:
        `ValueError`, `OSError`: If something cannot be used, mostly before anything is generated.
    """
    from accelerate import PartialState

    state, out, data = state or PartialState(), Path(out), dict(data or {})
    check_inputs(protocol, data)
    samples = protocol.source.open(protocol, data)
    extractors = load_extractors(protocol, data, device)
    memory = _load_memory(data["memory"]) if protocol.retrieved_pairs else None
    kinds = [measures()[name] for name in protocol.metrics]
    by_view = []
    for view in protocol.views:
        setting = Setting(protocol, view, samples, extractors, out / STATISTICS, state, batch_size)
        by_view.append((view, [kind(setting) for kind in kinds]))
    pipe = load_pipeline()
    weights = weights_hashes(pipe)
    made = generate_samples(
        protocol, pipe, samples, out / GENERATED, memory, batch_size, state, report, weights=weights
    )
    values, skipped = [], {}
    for view, own in by_view:
        skipped |= _read(out / GENERATED, made, samples, view, own, protocol, state, batch_size, report)
        for measure in own:
            values += measure.finish()
            report(f"figures, {view.name}", own.index(measure) + 1, len(own))
    planned = [sample for sample in samples.samples if not sample.control]
    result = EvaluationResult(
        protocol=protocol.to_dict(),
        protocol_sha256=protocol.sha256,
        changed=protocol.changed,
        metrics=tuple(values),
        samples={
            "planned": len(planned),
            "controls": len(samples.samples) - len(planned),
            "measured": sum(f"{GENERATED}/{one.file}" not in skipped for one in made),
        },
        skipped=skipped,
        model=model,
        weights=weights,
        versions=_versions(),
        settings={
            "device": str(pipe.device.type),
            "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
            "feature_device": device,
            "batch_size": batch_size,
            "processes": state.num_processes,
            "data": {name: str(path) for name, path in data.items()},
            "data_facts": samples.facts,
        },
        not_comparable_with=_not_comparable(protocol, skipped),
        shown=_shown(made, samples, by_view, skipped, shown),
    )
    if state.is_main_process:
        result.save(out)
        _write_samples(out / SAMPLE_TABLE, made, samples, by_view, skipped)
    state.wait_for_everyone()
    return result


def _load_memory(path: Path) -> Any:
    from ..retrieval import ImageTextMemory

    return ImageTextMemory.load(path)


def _read(
    folder: Path,
    made: Sequence[GeneratedSample],
    samples: SampleSet,
    view: "View",
    own: Sequence[Measure],
    protocol: "Protocol",
    state: Any,
    batch_size: int,
    report: Report,
) -> dict[str, str]:
    """Hands this process's part of the videos to the measures; returns what all processes skipped, and why."""
    from .metrics import VideoFiles

    part = list(range(len(made)))[state.process_index :: state.num_processes]
    skipped: dict[str, str] = {}
    whole = []
    for number in part:
        if reason := _damage(folder, made[number]):
            skipped[made[number].file] = reason
        else:
            whole.append(number)
    done = 0
    if whole:
        files = VideoFiles([folder / made[number].file for number in whole], protocol.num_frames, view.generated,
                           batch_size)  # fmt: skip
        for places, videos in files:
            numbers = [whole[int(place)] for place in places]
            for measure in own:
                rows = [row for row, number in enumerate(numbers) if measure.wants(samples.samples[number])]
                if rows:
                    measure.update([numbers[row] for row in rows], videos[rows])
            done += len(numbers)
            report(f"reading, {view.name}", done, len(part))
        skipped |= {str(Path(path).relative_to(folder)): reason for path, reason in files.skipped.items()}
    if state.num_processes > 1:
        from accelerate.utils import gather_object

        skipped = dict(gather_object([*skipped.items()]))
    if len(skipped) == len(made):
        raise ValueError(f"None of the {len(made)} videos in {folder} can be read: remove the folder and start again.")
    return {f"{GENERATED}/{file}": reason for file, reason in sorted(skipped.items())}


def _damage(folder: Path, made: GeneratedSample) -> str:
    from .metrics.extractor import file_sha256

    path = folder / made.file
    if not path.is_file():
        return "the file is missing"
    return "" if file_sha256(path) == made.sha256 else "the file is not what was generated (its SHA-256 differs)"


def _shown(
    made: Sequence[GeneratedSample],
    samples: SampleSet,
    by_view: Sequence[tuple["View", list[Measure]]],
    skipped: Mapping[str, str],
    number: int,
) -> tuple[ShownSample, ...]:
    """Videos spread evenly over all that are no controls; which ones depends on no figure."""
    whole = [place for place, one in enumerate(made) if f"{GENERATED}/{one.file}" not in skipped]
    whole = [place for place in whole if not samples.samples[place].control]
    picked = [whole[n * len(whole) // number] for n in range(number)] if len(whole) > number else whole
    shown = []
    for place in picked:
        values = {measure.name: measure.per_sample[place] for measure in by_view[0][1] if place in measure.per_sample}
        one, sample = made[place], samples.samples[place]
        text = sample.text or sample.prompt
        shown.append(ShownSample(one.id, text, f"{GENERATED}/{one.file}", one.seed, sample.control, values))
    return tuple(shown)


def _write_samples(
    path: Path,
    made: Sequence[GeneratedSample],
    samples: SampleSet,
    by_view: Sequence[tuple["View", list[Measure]]],
    skipped: Mapping[str, str],
) -> None:
    columns = {
        f"{measure.name} {view.name}": measure.per_sample
        for view, own in by_view
        for measure in own
        if measure.per_sample
    }
    rows = []
    for number, (one, sample) in enumerate(zip(made, samples.samples)):
        file = f"{GENERATED}/{one.file}"
        facts = {"id": one.id, "group": sample.group, "task": sample.task, "control": int(sample.control)}
        told = {"prompt": one.prompt, "seed": one.seed, "file": file, "sha256": one.sha256}
        values = {name: column.get(number, "") for name, column in columns.items()}
        rows.append({**facts, **told, "skipped": skipped.get(file, ""), **values})
    write_csv(path, [*rows[0]], rows)


def _not_comparable(protocol: "Protocol", skipped: Mapping[str, str]) -> tuple[str, ...]:
    notes = list(protocol.not_comparable_with)
    if protocol.changed:
        listed = ", ".join(f"{key} {one['protocol']} -> {one['here']}" for key, one in protocol.changed.items())
        notes.insert(0, f"results of the unchanged protocol {protocol.name}; changed here: {listed}")
    if skipped:
        notes.insert(0, f"results of all samples: {len(skipped)} videos could not be read and are not in the figures")
    return tuple(notes)


def _versions() -> dict[str, str]:
    found = {"vimi_diffusers": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


__all__ = ["RESULTS", "check_inputs", "evaluate"]
