# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The demo as an application of its own: `python demo/app.py`, `gradio demo/app.py`, or a Hugging Face Space.

`VIMI_MODEL` (folder or `user/repo`) and `VIMI_MEMORY` (folder) replace the embedded weights and memory. `vimi demo`
opens the same page with command-line options.
"""

import os

from vimi_diffusers.demo import launch, load_demo


demo = load_demo(os.environ.get("VIMI_MODEL"), os.environ.get("VIMI_MEMORY"))

if __name__ == "__main__":
    launch(demo)
