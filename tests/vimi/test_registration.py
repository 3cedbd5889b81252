import json
import os
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import _get_custom_components_and_folders

import vimi_diffusers
from vimi_diffusers import VIMIPipeline, registration, vimi


PROMPT = "a red ball"


def run(pipe, seed=0):
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, num_inference_steps=1, generator=torch.Generator().manual_seed(seed)).frames


def python(code, environment=None):
    """Run code in a fresh interpreter; its stdout."""
    source = os.path.dirname(os.path.dirname(vimi_diffusers.__file__))
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **(environment or {})}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_public_names_resolve():
    for name in vimi_diffusers.__all__:
        assert getattr(vimi_diffusers, name).__module__.startswith("vimi_diffusers")
        assert name in dir(vimi_diffusers)
    for name in vimi.__all__:
        assert getattr(diffusers, name) is getattr(diffusers.pipelines, name) is getattr(vimi, name)
    for module in (vimi_diffusers, vimi, diffusers):
        with pytest.raises(AttributeError, match="NoSuchName"):
            module.NoSuchName


def test_default_paths_are_inside_the_package():
    root = os.path.dirname(vimi_diffusers.__file__)
    assert str(vimi_diffusers.default_checkpoint()) == os.path.join(root, "assets", "emoji_world")
    assert vimi_diffusers.default_memory_path().parent == vimi_diffusers.default_checkpoint()


def test_registering_twice_changes_nothing():
    before = type(diffusers), type(diffusers.pipelines)
    registration.register()
    registration.register_on_import()
    assert (type(diffusers), type(diffusers.pipelines)) == before
    assert diffusers.pipelines.vimi is vimi


def test_a_foreign_vimi_is_not_overwritten(monkeypatch):
    monkeypatch.setattr(diffusers.pipelines, "vimi", "something else")
    with pytest.raises(RuntimeError, match="already exists: 'something else'"):
        registration.register()


def test_registration_is_immediate_when_diffusers_is_there(monkeypatch):
    import diffusers.pipelines.auto_pipeline  # noqa: F401

    calls = []
    monkeypatch.setattr(registration, "register", lambda: calls.append("registered"))
    monkeypatch.setattr(registration, "register_modular", lambda: calls.append("modular registered"))
    registration.register_on_import()
    assert calls == ["registered", "modular registered"]


def test_modular_registration_follows_the_auto_pipelines():
    output = python(
        "import sys, vimi_diffusers, diffusers\n"
        "assert 'diffusers.pipelines.auto_pipeline' not in sys.modules\n"
        "from diffusers.pipelines.auto_pipeline import _get_model\n"
        "print(_get_model('VIMIPipeline'), len(sys.meta_path))\n"
        "vimi_diffusers.registration.register_on_import()\n"
        "print(len(sys.meta_path))\n"
    )
    (name, finders), (finders_again,) = map(str.split, output.splitlines()[-2:])
    assert name == "vimi" and finders == finders_again


def test_import_is_light_and_registration_follows_diffusers():
    output = python(
        "import sys, importlib.util, vimi_diffusers\n"
        "assert not {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules), 'import is not light'\n"
        "assert importlib.util.find_spec('diffusers')\n"  # what other libraries do to see whether it is installed
        "import diffusers.pipelines\n"
        "assert diffusers.pipelines.vimi is vimi_diffusers.vimi\n"
        "assert 'vimi_diffusers.vimi.transformer_vimi' not in sys.modules, 'registration is not lazy'\n"
        "from diffusers import EDMVideoScheduler\n"
        "print(EDMVideoScheduler.__module__)\n"
    )
    assert output.strip() == "vimi_diffusers.vimi.scheduling_edm_video"


def test_index_names_the_package_and_passes_the_hub_check(tiny_pipeline, tiny_checkpoint):
    index = json.loads((tiny_checkpoint / "model_index.json").read_text())
    assert index["_class_name"] == "VIMIPipeline"
    assert index["checkpoint_version"] == VIMIPipeline.CHECKPOINT_VERSION == 1
    assert index["transformer"] == ["vimi", "VIMITransformer3DModel"]
    assert index["scheduler"] == ["vimi", "EDMVideoScheduler"]
    assert index["text_encoder"] == ["vimi", "MLLMConditioner"]
    assert index["text_processor"] == ["transformers", "LlavaProcessor"]
    assert index["vae"] == [None, None]
    files = {file.relative_to(tiny_checkpoint).as_posix() for file in tiny_checkpoint.rglob("*") if file.is_file()}
    custom, folders = _get_custom_components_and_folders("user/vimi", index, files)
    assert custom == {} and set(folders) == set(tiny_pipeline.components)


@pytest.mark.parametrize("loader", [VIMIPipeline, DiffusionPipeline])
def test_save_and_load_round_trip_is_exact(loader, tiny_pipeline, tiny_checkpoint):
    loaded = loader.from_pretrained(tiny_checkpoint)
    assert type(loaded) is VIMIPipeline
    assert type(loaded.text_processor) is type(tiny_pipeline.text_processor)
    np.testing.assert_array_equal(run(loaded), run(tiny_pipeline))


@pytest.mark.parametrize("loader", [VIMIPipeline, DiffusionPipeline])
def test_another_checkpoint_version_is_refused_before_loading(loader, tmp_path):
    index = {
        "_class_name": "VIMIPipeline",
        "_diffusers_version": "0.42.1",
        "checkpoint_version": 7,
        "scheduler": ["vimi", "EDMVideoScheduler"],
        "text_encoder": ["vimi", "MLLMConditioner"],
        "text_processor": ["transformers", "LlavaProcessor"],
        "transformer": ["vimi", "VIMITransformer3DModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))  # and no component: loading one would fail
    with pytest.raises(ValueError, match="version 7, this release of vimi_diffusers reads version 1"):
        loader.from_pretrained(tmp_path)


def test_another_checkpoint_version_is_refused_by_the_constructor():
    with pytest.raises(ValueError, match="version 2"):
        VIMIPipeline(None, None, None, None, checkpoint_version=2)


def test_components_load_alone(tiny_checkpoint):
    transformer = diffusers.AutoModel.from_pretrained(str(tiny_checkpoint), subfolder="transformer")
    assert type(transformer) is vimi.VIMITransformer3DModel
    conditioner = diffusers.AutoModel.from_pretrained(str(tiny_checkpoint), subfolder="text_encoder")
    assert type(conditioner) is vimi.MLLMConditioner
    pipe = VIMIPipeline.from_pretrained(tiny_checkpoint, transformer=transformer)
    assert pipe.transformer is transformer
