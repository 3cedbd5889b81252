# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
r"""Stage 2: tune one model on three instructed tasks, from a stage-1 pipeline.

    accelerate launch training_scripts/train_instruct.py --config training_scripts/configs/emoji_world_instruct.yaml \
        --pretrained_model_name_or_path runs/pretrain/pipeline --train_data_dir data/emoji_world \
        --output_dir runs/instruct
"""

from vimi_diffusers.training.loop import main


if __name__ == "__main__":
    main(__doc__)
