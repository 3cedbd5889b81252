# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How often the estimators of the grounding evaluation are right on real clips of emoji world.

python benchmarks/eval_estimators.py WORLD --split val_concept --samples 576
"""

import argparse

import torch

from vimi_diffusers.emoji_world.captions import MOVES
from vimi_diffusers.emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer, RenderBatch
from vimi_diffusers.emoji_world.samples import EmojiWorldDataset
from vimi_diffusers.evaluation.grounding import (
    CAMERAS,
    ColourFeatures,
    GroundingSample,
    default_extractor,
    evaluate_grounding,
    held_out_references,
    place_views,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", help="folder written by `vimi emoji-world build`")
    parser.add_argument(
        "--split", default="val_concept", help="split of the clips; subjects of val_seen are not named"
    )
    parser.add_argument("--samples", type=int, default=576)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of noise added to the clips")
    parser.add_argument("--extractor", choices=("default", "colours"), default="default")
    args = parser.parse_args()

    assets = EmojiWorldAssets.load(args.world)
    renderer = EmojiWorldRenderer(assets)
    samples = list(
        EmojiWorldDataset(assets.index, args.split, {"subject": 1.0}, args.seed, args.samples, canonical=True)
    )
    references = held_out_references(assets)
    asked = [GroundingSample.from_emoji_world(sample) for sample in samples]
    if samples[0].concept not in references:
        asked = [GroundingSample(None, each.place, each.move, each.camera) for each in asked]
        references = {}

    def clips():
        generator = torch.Generator().manual_seed(args.seed)
        for start in range(0, len(samples), 16):
            batch = RenderBatch.from_samples(samples[start : start + 16], assets.index)
            videos = renderer.videos(batch).transpose(1, 2) / 2 + 0.5
            yield (videos + args.noise * torch.randn(videos.shape, generator=generator)).clamp(0, 1)

    extractor = None if not references else ColourFeatures() if args.extractor == "colours" else default_extractor()
    result = evaluate_grounding(asked, clips(), references, place_views(assets), extractor=extractor)
    print(f"{len(samples)} clips of {args.split}, {len(references)} references, extractor {result['extractor']}")
    for name, value in result["generated"].items():
        if "confusion" not in name and value["count"]:
            print(f"{name:22}{value['value']:8.4f}  [{value['low']:.4f}, {value['high']:.4f}]  n {value['count']}")
    for what, names in (("motion", MOVES), ("camera", tuple(CAMERAS.values()))):
        print(f"\n{what:8}" + "".join(f"{name:>8}" for name in names))
        for row, seen in result["generated"][f"{what}_confusion"].items():
            print(f"{row:8}" + "".join(f"{count:8}" for count in seen.values()))


if __name__ == "__main__":
    main()
