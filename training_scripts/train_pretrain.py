# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
r"""Stage 1: pretrain on captions with retrieved image-text pairs.

    accelerate launch training_scripts/train_pretrain.py --config training_scripts/configs/emoji_world_pretrain.yaml \
        --train_data_dir data/emoji_world --output_dir runs/pretrain
"""

from vimi_diffusers.training.loop import main


if __name__ == "__main__":
    main(__doc__)
