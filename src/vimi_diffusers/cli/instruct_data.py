# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi instruct-data`: stage-2 samples from captioned videos."""

from pathlib import Path
from typing import Annotated

import typer


def instruct_data(
    source: Annotated[str, typer.Argument(help="Captioned videos: folder, file, tar shards or Hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; the same command goes on where it was stopped.")],
    tasks: Annotated[
        str, typer.Option(help="Share of each task, or names alone for equal shares.")
    ] = "subject=0.4,prediction=0.2,text-to-video=0.4",
    num_per_clip: Annotated[int, typer.Option(help="Samples of each clip.", min=1)] = 1,
    entities: Annotated[
        str, typer.Option(help="Finds words: spacy, lm, vocabulary, package.module:Class; =ARGUMENT names a model.")
    ] = "spacy",
    detector: Annotated[
        str, typer.Option(help="Finds boxes: grounding-dino or package.module:Class; =ARGUMENT names a model.")
    ] = "grounding-dino",
    segmenter: Annotated[
        str, typer.Option(help="Finds masks: sam or package.module:Class; =ARGUMENT names a model.")
    ] = "sam",
    max_subjects: Annotated[int, typer.Option(help="Subjects of a sample, at most.", min=1)] = 3,
    max_views: Annotated[int, typer.Option(help="Images of a subject, at most.", min=1)] = 3,
    background: Annotated[str, typer.Option(help="Reference of the place: crop, fill or none.")] = "crop",
    subject_background: Annotated[str, typer.Option(help="Around subjects: white or alpha.")] = "white",
    reference_size: Annotated[int, typer.Option(help="Longest side of a reference in pixels.", min=1)] = 336,
    augment: Annotated[
        bool, typer.Option("--augment/--no-augment", help="Change references so that they cannot be copied.")
    ] = True,
    min_score: Annotated[float, typer.Option(help="Least score of a box.", min=0, max=1)] = 0.35,
    min_visible: Annotated[float, typer.Option(help="Share of frames that must show a subject.", min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    device: Annotated[str, typer.Option(help="Where models run: cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of their weights: float32, bfloat16 or float16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Clips and images that are worked on at once.", min=1)] = 8,
    num_proc: Annotated[int, typer.Option(help="Processes.", min=1)] = 1,
    form: Annotated[str, typer.Option("--format", help="parquet or webdataset.")] = "parquet",
    shard_size: Annotated[int, typer.Option(help="Clips of a shard.", min=1)] = 500,
    embed_videos: Annotated[
        bool, typer.Option("--embed-videos", help="Put videos that are files into parquet too.")
    ] = False,
    split: Annotated[str, typer.Option(help="Split of a data set with several.")] = "train",
    config_name: Annotated[str | None, typer.Option("--config", help="Configuration of a data set.")] = None,
    video_column: Annotated[str, typer.Option(help="Field of the video.")] = "video",
    caption_column: Annotated[str, typer.Option(help="Field of the caption.")] = "caption",
) -> None:
    """Make stage-2 samples (subject, prediction, text-to-video) of captioned videos."""
    from transformers.utils import logging

    from ..data.instruct import InstructionSettings, PluginSettings, SubjectSettings, write_instruction_data

    logging.disable_progress_bar()
    settings = InstructionSettings(
        tasks=parse_tasks(tasks),
        num_per_clip=num_per_clip,
        seed=seed,
        max_subjects=max_subjects,
        max_views=max_views,
        background=background,
        subject_background=subject_background,
        reference_size=reference_size,
        augment=augment,
        subjects=SubjectSettings(min_score=min_score, min_visible=min_visible),
    )
    plugins = PluginSettings(entities, detector, segmenter, device, dtype, batch_size)
    manifest = write_instruction_data(
        source,
        out,
        settings,
        plugins,
        form=form,
        shard_size=shard_size,
        embed_videos=embed_videos,
        config_name=config_name,
        split=split,
        video_column=video_column,
        caption_column=caption_column,
        num_proc=num_proc,
        show=True,
    )
    typer.echo("\n".join(report_lines(manifest["report"], out)))


def parse_tasks(text: str) -> dict[str, float]:
    """
    `"subject=0.4,prediction=0.2"`, or names alone, as shares by task.

    Raises:
        ValueError: If a share is no number, or a task is named twice.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        task, equals, share = (each.strip() for each in part.partition("="))
        if task in shares:
            raise ValueError(f"--tasks {text!r} names {task!r} twice.")
        try:
            shares[task] = float(share) if equals else 1.0
        except ValueError:
            raise ValueError(f"--tasks has {part.strip()!r}: write a task as NAME or NAME=SHARE.") from None
    return shares


def report_lines(report: dict, out: Path) -> list[str]:
    """What a run made and dropped, for the terminal."""
    made = ", ".join(f"{task}: {count}" for task, count in sorted(report["samples"].items()))
    lines = [
        f"{out}: {sum(report['samples'].values())} samples of {report['clips']} clips ({made})",
        f"{report['subjects']} subjects and {report['backgrounds']} backgrounds found, "
        f"{report['references']} references written",
    ]
    groups = {"clips": report["bad_clips"], "words": report["dropped_entities"]}
    groups |= {f"{task} samples": reasons for task, reasons in sorted(report["dropped_samples"].items())}
    for name, reasons in groups.items():
        for reason, entry in sorted(reasons.items(), key=lambda item: -item[1]["count"]):
            lines.append(f"dropped {name}: {entry['count']} x {reason}, such as {'; '.join(entry['first'])}")
    return lines
