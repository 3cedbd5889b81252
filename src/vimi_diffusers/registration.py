# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Make diffusers know the classes in the folder `vimi`.

diffusers writes `["vimi", "ClassName"]` into a `model_index.json` for a class whose file lies directly inside a folder
that is an attribute of `diffusers.pipelines`, and reads such entries back the same way, from a local folder and from
the Hub. [`register`] adds that attribute and makes the class names resolvable from `diffusers`, so that
`VIMIPipeline.from_pretrained` and `DiffusionPipeline.from_pretrained` both work without remote code.
"""

import importlib.abc
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

from . import vimi


def register() -> None:
    """
    Register the `vimi` classes with diffusers. Safe to call twice. Imports diffusers, but none of the classes.

    Raises:
        `RuntimeError`: if diffusers has a pipeline package named `vimi` of its own.
    """
    import diffusers
    import diffusers.pipelines

    taken = getattr(diffusers.pipelines, "vimi", vimi)
    if taken is not vimi:
        raise RuntimeError(f"`diffusers.pipelines.vimi` already exists: {taken!r}.")
    diffusers.pipelines.vimi = vimi
    for module in (diffusers, diffusers.pipelines):
        _add_lazy_names(module)


def _add_lazy_names(module: ModuleType) -> None:
    base = type(module)
    if getattr(base, "_knows_vimi", False):
        return

    class WithVIMI(base):
        _knows_vimi = True

        def __getattr__(self, name: str) -> object:
            if name not in vimi.__all__:
                return base.__getattr__(self, name)
            value = getattr(vimi, name)
            setattr(self, name, value)
            return value

    # diffusers' own modules are lazy through their class too; a `__getattr__` set on the instance is never called.
    module.__class__ = WithVIMI


def register_modular() -> None:
    """
    Register [`VIMIBlocks`] as the blocks of [`VIMIPipeline`], so that `ModularPipeline.from_pretrained` takes the
    repository of either. Needs `diffusers.pipelines.auto_pipeline`, whose import loads every pipeline of diffusers.
    """
    from diffusers.pipelines import auto_pipeline

    auto_pipeline.AUTO_TEXT2VIDEO_PIPELINES_MAPPING[vimi.VIMIBlocks.model_name] = vimi.VIMIPipeline


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module as the other finders do, and calls a function once its import is complete."""

    def __init__(self, name: str, call: Callable[[], None]):
        self.name, self.call = name, call

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None:
            exec_module = spec.loader.exec_module

            def exec_and_call(module: ModuleType) -> None:
                exec_module(module)
                # Only now: libraries also look for the spec just to see whether diffusers is installed.
                sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
                self.call()

            spec.loader.exec_module = exec_and_call
        return spec


def _call_after_import(name: str, call: Callable[[], None]) -> None:
    if name in sys.modules:
        call()
    elif not any(isinstance(finder, _AfterImport) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(name, call))


def register_on_import() -> None:
    """Call [`register`] and [`register_modular`] now or as soon as diffusers is imported: that takes seconds."""
    _call_after_import("diffusers", register)
    _call_after_import("diffusers.pipelines.auto_pipeline", register_modular)
