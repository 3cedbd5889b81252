# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every class that diffusers saves and loads. The folder's name is written into `model_index.json`."""

from importlib import import_module
from typing import TYPE_CHECKING


_MODULES = {
    "EDMVideoScheduler": ".scheduling_edm_video",
    "MLLMConditioner": ".mllm_conditioner",
    "MLLMConditionerConfig": ".mllm_conditioner",
    "VIMIBlocks": ".modular_vimi",
    "VIMIGuidance": ".guidance",
    "VIMIModularPipeline": ".modular_vimi",
    "VIMIPipeline": ".pipeline_vimi",
    "VIMIPipelineOutput": ".pipeline_output",
    "VIMITransformer3DModel": ".transformer_vimi",
    "VIMIUpscalePipeline": ".pipeline_vimi_upscale",
}

__all__ = [
    "EDMVideoScheduler",
    "MLLMConditioner",
    "MLLMConditionerConfig",
    "VIMIBlocks",
    "VIMIGuidance",
    "VIMIModularPipeline",
    "VIMIPipeline",
    "VIMIPipelineOutput",
    "VIMITransformer3DModel",
    "VIMIUpscalePipeline",
]

if TYPE_CHECKING:
    from .guidance import VIMIGuidance
    from .mllm_conditioner import MLLMConditioner, MLLMConditionerConfig
    from .modular_vimi import VIMIBlocks, VIMIModularPipeline
    from .pipeline_output import VIMIPipelineOutput
    from .pipeline_vimi import VIMIPipeline
    from .pipeline_vimi_upscale import VIMIUpscalePipeline
    from .scheduling_edm_video import EDMVideoScheduler
    from .transformer_vimi import VIMITransformer3DModel


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
