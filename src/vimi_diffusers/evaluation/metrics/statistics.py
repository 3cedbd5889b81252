# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Statistics that grow batch by batch, merge over processes and files, and know whose features they are of."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from ...files import replacing
from .extractor import check_same_extractor


FORMAT = 1


class Statistics(ABC):
    """
    Tensors that hold what is known of the samples so far, and the settings that all parts of one result share.

    Args:
        settings (`Mapping[str, Any]`): Arguments of the class, as JSON values.
        tensors (`dict[str, torch.Tensor]`): The state, of no sample yet.
    """

    def __init__(self, settings: Mapping[str, Any], tensors: dict[str, torch.Tensor]):
        self.settings, self.tensors = dict(settings), tensors

    @property
    def device(self) -> torch.device:
        """Where the state is, and where `update` calculates."""
        return next(iter(self.tensors.values())).device

    def merge(self, other: Self) -> Self:
        """
        Adds the samples of another part; the order of merging changes rounding only.

        Raises:
            `ValueError`: if the other part is of another extractor or has other settings.
        """
        self._check(other.settings, "The other part")
        self._merge({name: tensor.to(self.device) for name, tensor in other.tensors.items()})
        return self

    @abstractmethod
    def _merge(self, other: Mapping[str, torch.Tensor]) -> None: ...

    def gather(self, accelerator: Any) -> Self:
        """
        The parts of all processes, merged in the order of their ranks. Every process must call it; all get the same.

        Args:
            accelerator (`accelerate.Accelerator` or `accelerate.PartialState`): The processes.

        Raises:
            `ValueError`: if a process has a part of another extractor or with other settings.
        """
        from accelerate.utils import gather, gather_object

        for rank, settings in enumerate(gather_object([self.settings])):
            self._check(settings, f"The part of process {rank}")  # before tensors of other shapes wait for each other
        device = accelerator.device if accelerator.num_processes > 1 else self.device  # NCCL takes no CPU tensors
        gathered = {
            name: gather(tensor[None].contiguous().to(device)).to(self.device) for name, tensor in self.tensors.items()
        }
        whole = type(self)(**self.settings, device=self.device)
        for rank in range(len(next(iter(gathered.values())))):
            whole._merge({name: tensor[rank] for name, tensor in gathered.items()})
        return whole

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        header = {"kind": type(self).__name__, "format": FORMAT, "settings": self.settings}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"vimi_statistics": json.dumps(header)})

    @classmethod
    def load(
        cls, path: str | Path, identity: Mapping[str, Any] | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """
        Reads what [`~Statistics.save`] wrote.

        Args:
            path (`str` or `Path`): The file.
            identity (`Mapping[str, Any]`, *optional*): Identity of the extractor that the file must be of.
            device (`str`, *optional*, defaults to `"cpu"`): Where to put the state.

        Raises:
            `FileNotFoundError`: if there is no such file.
            `ValueError`: if it is no such file, is damaged, or is of another extractor.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["vimi_statistics"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            kind, form, settings = header["kind"], header["format"], header["settings"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no file of statistics, or is damaged ({error}): compute it again.") from error
        if (kind, form) != (cls.__name__, FORMAT):
            raise ValueError(f"{path} holds {kind} in format {form}, not {cls.__name__} in format {FORMAT}.")
        if identity is not None:
            check_same_extractor(settings["identity"] or {}, identity, str(path))
        loaded = cls(**settings, device=device)
        shapes = {name: tuple(tensor.shape) for name, tensor in loaded.tensors.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            raise ValueError(f"{path} does not hold the tensors {shapes}: compute it again.")
        loaded.tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        return loaded

    def _check(self, settings: Mapping[str, Any], what: str) -> None:
        own, others = self.settings, settings
        if own.get("identity") is not None and others.get("identity") is not None:
            check_same_extractor(others["identity"], own["identity"], what)
            own, others = ({**each, "identity": ""} for each in (own, others))
        if own != others:
            raise ValueError(f"{what} has the settings {dict(settings)}, not {self.settings}: they cannot be merged.")


class FeatureStatistics(Statistics):
    """
    Number, mean and covariance of feature vectors, in float64. Batches are merged by the formula of Chan, Golub and
    LeVeque (1979), which subtracts no large numbers from each other, so nothing is lost far from zero.

    Args:
        identity (`Mapping[str, Any]`): Identity of the extractor, with its `dimension`.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where to keep the state and to calculate; features may come from anywhere.

    Example:
        >>> statistics = FeatureStatistics(extractor.identity)
        >>> for videos in batches:
        ...     statistics.update(extractor(videos))
        >>> frechet_distance(statistics, FeatureStatistics.load("real.safetensors", extractor.identity))
    """

    def __init__(self, identity: Mapping[str, Any], device: str | torch.device = "cpu"):
        dimension = int(identity["dimension"])
        zeros = {"count": (), "mean": (dimension,), "scatter": (dimension, dimension)}
        tensors = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in zeros.items()}
        super().__init__({"identity": dict(identity)}, tensors)
        self.dimension = dimension

    def update(self, features: torch.Tensor) -> Self:
        """
        Adds samples.

        Args:
            features (`torch.Tensor` of shape `(B, dimension)`): Of any floating-point type, on any device.

        Raises:
            `ValueError`: if the shape is another one or a value is not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise ValueError(f"Features must have the shape (B, {self.dimension}), got {tuple(features.shape)}.")
        features = features.detach().to(self.device, torch.float64)
        check_finite(features, "features")
        if len(features):
            mean = features.mean(dim=0)
            centred = features - mean
            count = torch.tensor(float(len(features)), dtype=torch.float64, device=self.device)
            self._merge({"count": count, "mean": mean, "scatter": centred.T @ centred})
        return self

    def _merge(self, other: Mapping[str, torch.Tensor]) -> None:
        _merge_moments(self.tensors, other, torch.outer)

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.tensors["count"])

    @property
    def mean(self) -> torch.Tensor:
        """Their mean, `(dimension,)`."""
        return self.tensors["mean"]

    @property
    def covariance(self) -> torch.Tensor:
        """
        Their covariance with the divisor n - 1, `(dimension, dimension)`.

        Raises:
            `ValueError`: if there are fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 samples, there are {self.count}.")
        return self.tensors["scatter"] / (self.count - 1)


class ScalarStatistics(Statistics):
    """
    Number, mean and spread of values, one for each sample: for measures that are means over videos.

    Args:
        name (`str`): What the values are, such as `"clipsim"`.
        identity (`Mapping[str, Any]`, *optional*): Identity of the extractor behind them.
        device (`str`, *optional*, defaults to `"cpu"`): Where to keep the state.
    """

    def __init__(self, name: str, identity: Mapping[str, Any] | None = None, device: str | torch.device = "cpu"):
        tensors = {
            field: torch.zeros((), dtype=torch.float64, device=device) for field in ("count", "mean", "scatter")
        }
        super().__init__({"name": name, "identity": None if identity is None else dict(identity)}, tensors)

    def update(self, values: torch.Tensor) -> Self:
        """
        Adds samples.

        Args:
            values (`torch.Tensor` of shape `(B,)`): Numbers, or truth values of which the mean is the share.

        Raises:
            `ValueError`: if the shape is another one or a value is not finite.
        """
        if values.ndim != 1:
            raise ValueError(f"Values of {self.settings['name']} must have the shape (B,), got {tuple(values.shape)}.")
        values = values.detach().to(self.device, torch.float64)
        check_finite(values, f"values of {self.settings['name']}")
        if len(values):
            mean = values.mean()
            count = torch.tensor(float(len(values)), dtype=torch.float64, device=self.device)
            self._merge({"count": count, "mean": mean, "scatter": (values - mean).square().sum()})
        return self

    def _merge(self, other: Mapping[str, torch.Tensor]) -> None:
        _merge_moments(self.tensors, other, torch.mul)

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.tensors["count"])

    @property
    def mean(self) -> float:
        """
        Their mean.

        Raises:
            `ValueError`: if there is no sample.
        """
        if not self.count:
            raise ValueError(f"There is no value of {self.settings['name']} yet.")
        return float(self.tensors["mean"])

    @property
    def std(self) -> float:
        """Their standard deviation with the divisor n - 1; `nan` below two samples."""
        return math.sqrt(float(self.tensors["scatter"]) / (self.count - 1)) if self.count > 1 else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; `nan` below two samples."""
        return self.std / math.sqrt(self.count) if self.count else math.nan


def check_finite(values: torch.Tensor, what: str) -> None:
    """
    Raises:
        `ValueError`: if a value is `nan` or infinite, naming the first sample.
    """
    bad = ~values.isfinite().flatten(1).all(dim=1) if values.ndim > 1 else ~values.isfinite()
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(values)} {what} are not finite, first of sample {int(bad.nonzero()[0])} of the "
            "batch: look at that video."
        )


def _merge_moments(own: dict[str, torch.Tensor], other: Mapping[str, torch.Tensor], product: Any) -> None:
    count = own["count"] + other["count"]
    if not count:
        return
    delta = other["mean"] - own["mean"]
    own["scatter"] = (
        own["scatter"] + other["scatter"] + product(delta, delta) * (own["count"] * other["count"] / count)
    )
    own["mean"] = own["mean"] + delta * (other["count"] / count)
    own["count"] = count
