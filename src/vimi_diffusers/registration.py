# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Make diffusers know the classes in the folder `vimi`.

diffusers writes `["vimi", "ClassName"]` into a `model_index.json` for a class whose file lies directly inside a folder
that is an attribute of `diffusers.pipelines`, and reads such entries back the same way, from a local folder and from
the Hub. [`register`] adds that attribute and makes the class names resolvable from `diffusers`, so that
`VIMIPipeline.from_pretrained` and `DiffusionPipeline.from_pretrained` both work without remote code.
"""

import importlib.abc
import sys
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


class _RegisterAfterDiffusers(importlib.abc.MetaPathFinder):
    """Finds diffusers as the other finders do, and calls [`register`] once its import is complete."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "diffusers":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None:
            exec_module = spec.loader.exec_module

            def exec_and_register(module: ModuleType) -> None:
                exec_module(module)
                # Only now: libraries also look for the spec just to see whether diffusers is installed.
                sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
                register()

            spec.loader.exec_module = exec_and_register
        return spec


def register_on_import() -> None:
    """Call [`register`] now if diffusers is already imported, else as soon as it is: its import takes seconds."""
    if "diffusers" in sys.modules:
        register()
    elif not any(isinstance(finder, _RegisterAfterDiffusers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterDiffusers())
