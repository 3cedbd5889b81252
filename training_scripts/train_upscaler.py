# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The second model of the cascade: an upscaler, from scratch or from a base pipeline.

    accelerate launch training_scripts/train_upscaler.py --config training_scripts/configs/emoji_world_upscaler.yaml \
        --train_data_dir data/emoji_world --output_dir runs/upscaler
"""

from vimi_diffusers.training.loop import main
from vimi_diffusers.training.upscale_loop import UpscaleTrainer


if __name__ == "__main__":
    main(__doc__, UpscaleTrainer)
