"""Export with code: one file for each class, which loads and draws the same without the package."""

import ast
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from fake_hub import FakeHub

import vimi_diffusers
from vimi_diffusers import VIMIPipeline, vimi
from vimi_diffusers.export import code_files, export
from vimi_diffusers.flatten import flatten
from vimi_diffusers.vimi import VIMIGuidance


CODE = {"pipeline.py", "scheduler/vimi.py", "text_encoder/vimi.py", "transformer/vimi.py"}

WITHOUT_PACKAGE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vimi_diffusers":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
import numpy as np, torch
from diffusers import DiffusionPipeline
from PIL import Image

results = []
for place in sys.argv[2:]:
    pipe = DiffusionPipeline.from_pretrained(place, custom_pipeline="pipeline", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    for task, images in (("text-to-video", None), ("prediction", [Image.new("RGB", (16, 16), "red")])):
        generator = torch.Generator().manual_seed(0)
        results.append(pipe("a red ball", images, task, num_inference_steps=2, generator=generator).frames)
    print(type(pipe).__module__, type(pipe.transformer).__module__, "vimi_diffusers" in sys.modules)
np.save(sys.argv[1], np.stack(results))
"""


def draw(pipe):
    from PIL import Image

    pipe.set_progress_bar_config(disable=True)
    results = []
    for task, images in (("text-to-video", None), ("prediction", [Image.new("RGB", (16, 16), "red")])):
        generator = torch.Generator().manual_seed(0)
        results.append(pipe("a red ball", images, task, num_inference_steps=2, generator=generator).frames)
    return np.stack(results)


def test_without_the_package_from_a_folder_and_from_the_hub(tiny_pipeline, tiny_checkpoint, tmp_path):
    files = export(tiny_checkpoint, tmp_path / "hub" / "user" / "coded", with_code=True, repo_id="user/coded")
    assert CODE <= set(files) and "README.md" in files
    folder = tmp_path / "hub" / "user" / "coded"
    with FakeHub(tmp_path / "hub") as hub:
        # no PYTHONPATH, and a working directory without the package
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        result = subprocess.run(
            [sys.executable, "-c", WITHOUT_PACKAGE, str(tmp_path / "out.npy"), str(folder), "user/coded"],
            env={**environment, **hub.environment(tmp_path / "cache")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert result.returncode == 0, result.stderr
    modules = [line.split() for line in result.stdout.splitlines()]
    assert modules == [["diffusers_modules.local.pipeline", "diffusers_modules.local.vimi", "False"]] * 2
    assert "Expected types" not in result.stderr and "might require" not in result.stderr
    expected = draw(tiny_pipeline)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.concatenate([expected, expected]))


@pytest.mark.parametrize("loader", [VIMIPipeline, DiffusionPipeline])
def test_with_the_package_the_installed_classes_are_used(tiny_pipeline, tiny_checkpoint, tmp_path, loader):
    export(tiny_checkpoint, tmp_path / "coded", with_code=True)
    loaded = loader.from_pretrained(tmp_path / "coded")
    assert type(loaded) is VIMIPipeline and type(loaded.transformer) is vimi.VIMITransformer3DModel
    np.testing.assert_array_equal(draw(loaded), draw(tiny_pipeline))


def test_trust_is_asked_for(tiny_checkpoint, tmp_path):
    export(tiny_checkpoint, tmp_path / "coded", with_code=True)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tmp_path / "coded", custom_pipeline="pipeline")


def test_files_are_copied_bit_for_bit(tiny_checkpoint, tmp_path):
    files = export(tiny_checkpoint, tmp_path / "plain")
    assert not [name for name in files if name.endswith(".py")]
    for name in set(files) - {"README.md"}:
        assert (tmp_path / "plain" / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    saved = {file.relative_to(tiny_checkpoint).as_posix() for file in tiny_checkpoint.rglob("*") if file.is_file()}
    assert set(files) == saved | {"README.md"}
    assert 'from_pretrained("plain")' in (tmp_path / "plain" / "README.md").read_text()
    assert "trust_remote_code" not in (tmp_path / "plain" / "README.md").read_text()


def test_the_code_of_every_pipeline_and_component():
    kinds = {name: getattr(vimi, name) for name in vimi.__all__}
    pipelines = [name for name, cls in kinds.items() if issubclass(cls, DiffusionPipeline)]
    assert "VIMIPipeline" in pipelines
    for name in pipelines:
        index = {
            "_class_name": name,
            "transformer": ["vimi", "VIMITransformer3DModel"],
            "scheduler": ["vimi", "EDMVideoScheduler"],
            "text_encoder": ["vimi", "MLLMConditioner"],
            "guider": ["vimi", "VIMIGuidance"],
            "vae": [None, None],
            "text_processor": ["transformers", "LlavaProcessor"],
        }
        files = code_files(index)
        assert set(files) == CODE | {"guider/vimi.py"}
        for path, source in files.items():
            assert source.startswith("# Copyright") and "Apache License, Version 2.0" in source[:400], path
            assert f"Written by `vimi export --with-code` of vimi_diffusers {vimi_diffusers.__version__}" in source
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = [node.module] if isinstance(node, ast.ImportFrom) else [own.name for own in node.names]
                    assert not getattr(node, "level", 0)
                    assert not any(own.partition(".")[0] == "vimi_diffusers" for own in names), path
        assert "class VIMITransformer3DModel" not in files["pipeline.py"]  # only its base is named there
        module = types.ModuleType("flat_pipeline")
        exec(compile(files["pipeline.py"], "pipeline.py", "exec"), module.__dict__)
        found = diffusers.utils.dynamic_modules_utils.find_pipeline_class(module)
        assert found.__name__ == name and found is not getattr(vimi, name)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules of a package and flatten one of its classes."""

    def make(cls, **modules):
        folder = tmp_path / "flat_me"
        folder.mkdir()
        for name, source in {"__init__": "", **modules}.items():
            (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.partition(".")[0] == "flat_me"]:
            monkeypatch.delitem(sys.modules, name)
        module, _, name = cls.partition(":")
        return flatten(getattr(__import__(f"flat_me.{module}", fromlist=[name]), name))

    return make


def load(source):
    namespace = {"__name__": "flat"}
    exec(source, namespace)
    return namespace


def test_flattening_takes_what_is_needed_and_renames_what_collides(package):
    source = package(
        "main:Thing",
        base='"""Docs."""\nimport math as m\nfrom fractions import Fraction\n\nTABLE = []\nTABLE.append(m.pi)\n\n\n'
        "# counts\ndef value():\n    return TABLE[0]\n\n\ndef name():\n    return Fraction(1, 2)\n\n\n"
        "def unused():\n    return Fraction(7)\n",
        again="from .base import name as other_name\n",
        main='"""Main."""\nimport os.path\nfrom decimal import Decimal as Fraction\nfrom .again import other_name\n'
        "from . import base as _base_module  # never used\nfrom .base import value\n\n\ndef name():\n"
        '    return "ä" + str(Fraction(3)) + os.path.sep\n\n\n'
        "class Thing:\n    def get(self):\n        return name(), other_name(), value()\n",
    )
    import fractions
    import math

    flat = load(source)
    assert flat["Thing"]().get() == ("ä3" + os.path.sep, fractions.Fraction(1, 2), math.pi)
    assert "unused" not in source and "# counts\ndef value" in source
    assert source.count("\ndef name") == 2 and "def name_" in source


def test_what_cannot_be_flattened_is_refused(package):
    with pytest.raises(ValueError, match=r"flat_me.main, line 3: import from flat_me.base at the top"):
        package("main:f", base="x = 1\n", main="def f():\n    if True:\n        from .base import x\n    return x\n")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda index: index.update(_class_name="StableDiffusionPipeline"), "not a pipeline of vimi_diffusers"),
        (lambda index: index.update(_class_name="VIMITransformer3DModel"), "not a pipeline of vimi_diffusers"),
        (lambda index: index.update(checkpoint_version=7), "version 7"),
        (lambda index: index.update(guider=["vimi", "VIMIGuidance"]), "lacks the folder 'guider'"),
        (lambda index: index.update({"../transformer": ["vimi", "VIMITransformer3DModel"]}), "lacks the folder"),
        (lambda index: index.update(transformer=["vimi", "Unknown"]), "class 'Unknown', which this release"),
    ],
)
def test_other_folders_are_refused_and_nothing_is_written(tiny_checkpoint, tmp_path, change, message):
    import shutil

    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    change(index)
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "model", tmp_path / "out", with_code=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_failure_leaves_nothing_behind(tiny_checkpoint, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("vimi_diffusers.export.write_model_card", fail)
    (tmp_path / "out").mkdir()  # an empty folder may be used
    with pytest.raises(OSError, match="disk full"):
        export(tiny_checkpoint, tmp_path / "out", with_code=True)
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]
    monkeypatch.undo()
    assert CODE <= set(export(tiny_checkpoint, tmp_path / "out", with_code=True))
    with pytest.raises(ValueError, match="exists already"):
        export(tiny_checkpoint, tmp_path / "out")


def test_a_saved_guider_comes_along(tiny_pipeline, tmp_path):
    tiny_pipeline.register_modules(guider=VIMIGuidance(guidance_scale=2.0))
    tiny_pipeline.save_pretrained(tmp_path / "model")
    assert "guider/vimi.py" in export(tmp_path / "model", tmp_path / "out", with_code=True)


def test_from_the_hub(tiny_checkpoint, tmp_path, monkeypatch):
    export(tiny_checkpoint, tmp_path / "hub" / "user" / "plain")
    with FakeHub(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        assert "transformer/config.json" in export("user/plain", tmp_path / "out")
        hub.private.add("user/plain")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        hub.connect(monkeypatch, tmp_path / "other cache")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(ValueError, match="Cannot download user/plain(?s:.*)private or gated repo"):
            export("user/plain", tmp_path / "private")
    for name in ("no/such/folder", str(tmp_path / "missing")):
        with pytest.raises(ValueError, match="no folder"):
            export(name, tmp_path / "missing out")
    assert not Path(tmp_path / "private").exists()
