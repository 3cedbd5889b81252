# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi data`: data sets for training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer


if TYPE_CHECKING:
    from ..data.validation import Findings


app = typer.Typer(help="Data sets for training.", no_args_is_help=True)


@app.callback()
def _data() -> None:
    pass


@app.command()
def validate(
    path: Annotated[str, typer.Argument(help="Folder, file, tar shards (folder or pattern) or Hub id.")],
    config: Annotated[
        Optional[Path], typer.Option(help="YAML file of a training; the options below win over it.")
    ] = None,
    bucket: Annotated[
        Optional[list[str]],
        typer.Option(help="Shape such as 16x64x64@5.333; repeat for several.", show_default="the model's"),
    ] = None,
    model: Annotated[
        Optional[str],
        typer.Option(help="Pipeline whose processor and shapes count.", show_default="embedded weights"),
    ] = None,
    max_sequence_length: Annotated[
        Optional[int], typer.Option(help="Tokens of a prompt.", min=1, show_default="192")
    ] = None,
    max_bad_share: Annotated[
        Optional[float], typer.Option(help="Share of bad samples to bear.", min=0, max=1, show_default="0.05")
    ] = None,
    samples: Annotated[int, typer.Option(help="Training samples to show.", min=1)] = 4,
    report: Annotated[Optional[Path], typer.Option(help="JSON lines file for all bad samples.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read headers only, decode nothing.")] = False,
    workers: Annotated[int, typer.Option(help="Samples that are read at once.", min=1)] = 4,
) -> None:
    """Check a data set and show what training would see; exit code 1 if it would refuse the data."""
    from ..data import VideoDataSettings, open_source
    from ..data.prompts import PromptSettings
    from ..data.validation import validate as find

    values = _training_values(config)
    given = {"video_buckets": bucket, "max_sequence_length": max_sequence_length, "max_bad_share": max_bad_share}
    values |= {name: value for name, value in given.items() if value is not None}
    names = ("task_weights", "max_context", "condition_dropout", "image_dropout", "num_paraphrases")
    settings = VideoDataSettings(
        buckets=values.get("video_buckets"),
        prompts=PromptSettings(**{name: values[name] for name in names if name in values}),
        seed=values.get("seed", 0),
        batch_size=values.get("train_batch_size", 1),
        max_sequence_length=values.get("max_sequence_length", 192),
        max_bad_share=values.get("max_bad_share", 0.05),
        num_workers=workers,
    )
    columns = {name: values[name] for name in ("video_column", "caption_column") if name in values}
    source = open_source(path, values.get("dataset_config_name"), **columns)
    processor, transformer, chat = _model_parts(model or values.get("pretrained_model_name_or_path"))
    findings = find(source, processor, transformer, settings, chat, not quick, samples, report, show=True)
    _show(findings, path)
    if not findings.usable:
        raise typer.Exit(1)


def _training_values(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    import yaml

    if not config.is_file():
        raise FileNotFoundError(f"No configuration file at {config}.")
    values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{config} must hold a mapping of arguments, not a {type(values).__name__}.")
    return {name: value for name, value in values.items() if value is not None}


def _model_parts(model: str | None) -> tuple[Any, Any, bool]:
    """Text processor, generator without weights, and whether prompts are chat turns."""
    import torch
    from transformers import AutoProcessor
    from transformers.utils import logging

    from .. import VIMITransformer3DModel, default_checkpoint
    from ..vimi.mllm_conditioner import MLLMConditionerConfig

    logging.disable_progress_bar()
    name = str(model or default_checkpoint())
    if (Path(name).is_absolute() or name.startswith(".")) and not (Path(name) / "model_index.json").is_file():
        raise FileNotFoundError(f"There is no pipeline at {name}.")
    processor = AutoProcessor.from_pretrained(name, subfolder="text_processor")
    conditioner = MLLMConditionerConfig.from_pretrained(name, subfolder="text_encoder")
    with torch.device("meta"):
        transformer = VIMITransformer3DModel.from_config(
            VIMITransformer3DModel.load_config(name, subfolder="transformer")
        )
    return processor, transformer, conditioner.crop_start > 0


def _show(findings: "Findings", path: str) -> None:
    bad = len(findings.report.bad)
    share = f"{bad / findings.total:.1%}" if findings.total else "0"
    typer.echo(f"{path}: {findings.kind}, {findings.total} samples, {bad} of them bad ({share})")
    if bad:
        typer.echo(findings.report.summary())
        if findings.report.path:
            typer.echo(f"All are named in {findings.report.path}.")
    if findings.buckets:
        typer.echo("\nbuckets (frames x height x width @ frames/s)")
        for name, (videos, images) in findings.buckets.items():
            typer.echo(f"    {name}: {videos} videos, {images} images")
        typer.echo("\nleast, median, greatest")
        for name, spread in findings.ranges.items():
            typer.echo(f"    {name}: " + ", ".join(f"{value:.4g}" for value in spread))
        for name, spread in findings.tokens.items():
            typer.echo(f"    tokens, {name}: " + ", ".join(map(str, spread)))
        if findings.cut:
            typer.echo(f"    {findings.cut} prompts are over {findings.max_sequence_length} tokens and lose words")
        typer.echo("\nsamples that allow each task: " + _counts(findings.tasks))
        typer.echo("samples by number of references: " + _counts(findings.references))
        typer.echo("samples by number of retrieved pairs: " + _counts(findings.context))
    for number, sample in enumerate(findings.samples):
        sizes = ", ".join(f"{width}x{height}" for width, height in sample.images) or "none"
        typer.echo(f"\nstep {number}: {sample.key}, {sample.task}, {sample.bucket}, images (width x height): {sizes}")
        typer.echo(f"    {sample.text!r}")
    if not findings.usable:
        over = f"over the share of {findings.max_bad_share:g}" if bad else "there is nothing to train on"
        typer.echo(f"\nTraining would refuse this data set: {over}.")


def _counts(counts: dict) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"
