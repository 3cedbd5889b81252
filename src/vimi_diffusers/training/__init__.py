# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share: configuration, loss, data, loop and checkpoints."""
