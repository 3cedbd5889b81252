# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""`vimi augment`: a data set's captions with pairs retrieved from a memory."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def augment(
    source: Annotated[str, typer.Argument(help="Data set: folder, file, tar shards (folder or pattern) or Hub id.")],
    memory: Annotated[Path, typer.Argument(help="Folder of a saved memory.")],
    out: Annotated[Path, typer.Argument(help="Folder for the new data set.")],
    k: Annotated[
        int, typer.Option("--k", min=1, help="Pairs for each caption, of each kind that the memory has.")
    ] = 4,
    candidates: Annotated[
        Optional[int], typer.Option(min=1, help="Best pairs to choose them from.", show_default="max(32, 4 k)")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="parquet or webdataset.")] = "parquet",
    shard_size: Annotated[int, typer.Option(min=1, help="Samples of a shard.")] = 1000,
    embed_videos: Annotated[
        bool, typer.Option("--embed-videos", help="Carry videos that are files in parquet too, as tar shards do.")
    ] = False,
    source_column: Annotated[
        Optional[list[str]],
        typer.Option(
            help="Value that says where a sample or pair comes from.", show_default="source_id, video_id, url"
        ),
    ] = None,
    image_radius: Annotated[
        int, typer.Option(min=0, max=7, help="Bits in which hashes of images that look the same may differ.")
    ] = 4,
    compare_images: Annotated[
        bool, typer.Option("--compare-images/--no-compare-images", help="Withhold pairs that look like the video.")
    ] = True,
    compare_texts: Annotated[
        bool, typer.Option("--compare-texts", help="Withhold pairs whose text is the caption.")
    ] = False,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a video that are compared.")] = 1,
    exclude_prompts: Annotated[
        Optional[Path], typer.Option(help="Evaluation prompts, one a line, that must not occur.")
    ] = None,
    config_name: Annotated[Optional[str], typer.Option(help="Configuration of a data set with several.")] = None,
    split: Annotated[str, typer.Option(help="Split of a data set with several.")] = "train",
    video_column: Annotated[str, typer.Option(help="Field of the video.")] = "video",
    caption_column: Annotated[str, typer.Option(help="Field of the caption.")] = "caption",
    num_proc: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    ray: Annotated[Optional[str], typer.Option(help="Work on this Ray cluster instead; auto finds it.")] = None,
) -> None:
    """
    Write a data set with the pairs that its captions retrieve, for training. Repeat a call that was stopped to go on.
    """
    from ..data.augment import AugmentSettings
    from ..data.augment import augment as run
    from ..retrieval.hygiene import HygieneReport, HygieneRules, PromptList

    if ray is not None and num_proc != 1:
        raise typer.BadParameter("--num-proc is for one machine: a Ray cluster knows its own size.")
    rules = HygieneRules(
        source_columns=tuple(source_column or HygieneRules.source_columns),
        image_radius=image_radius if compare_images else None,
        texts=compare_texts,
    )
    settings = AugmentSettings(k, candidates, form, shard_size, embed_videos, rules, frames)
    manifest = run(
        source,
        memory,
        out,
        settings,
        prompts=PromptList.from_file(exclude_prompts) if exclude_prompts else None,
        config_name=config_name,
        split=split,
        video_column=video_column,
        caption_column=caption_column,
        num_proc=num_proc,
        ray_address=ray,
        show=True,
    )
    counts = manifest["counts"]
    typer.echo(
        f"{out}: {counts['written']} of {counts['samples']} samples in {len(manifest['shards'])} shards, "
        f"{counts['pairs']} pairs; {counts['fewer_than_k']} samples with fewer than {k} of a kind, "
        f"{counts['without_pairs']} with none"
    )
    if counts["context_replaced"]:
        typer.echo(f"{counts['context_replaced']} samples had a context, which these pairs replace.")
    for what in ("dropped_captions", "withheld_pairs"):
        report = HygieneReport.from_dict(manifest[what])
        typer.echo(f"\n{what.replace('_', ' ')}: {report}")
