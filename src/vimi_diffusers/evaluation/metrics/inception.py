# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The Inception score, sample by sample, over processes."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch

from .statistics import Statistics, check_finite


class InceptionStatistics(Statistics):
    """
    Sums from which the Inception score follows ([Salimans et al., 2016](https://huggingface.co/papers/1606.03498); for
    videos with a C3D of UCF101, [Saito et al., 2020](https://huggingface.co/papers/1811.09245)). Every sample has a
    number, which says what split it is in, so the result depends neither on the order of samples nor on who measured
    which; numbers that are missing or come twice are errors.

    Args:
        identity (`Mapping[str, Any]`):
            Identity of the extractor; its `output` is `"logits"` or `"probabilities"`, its `dimension` the classes.
        num_samples (`int`): Samples that the score will be of.
        splits (`int`, *optional*, defaults to `10`): Parts of which each gets a score.
        shuffle_seed (`int`, *optional*):
            Put samples in the order `numpy.random.RandomState(shuffle_seed).permutation(num_samples)` before splitting
            them, as StyleGAN-V does with 42 and torch-fidelity with 2020. `None` splits by number, which is wrong
            where neighbours are alike, as with samples in order of class.
        device (`str`, *optional*, defaults to `"cpu"`): Where to keep the state and to calculate.

    Raises:
        `ValueError`: if the extractor gives features, or there are fewer samples than splits.

    Example:
        >>> statistics = InceptionStatistics(extractor.identity, num_samples=10_000, shuffle_seed=42)
        >>> statistics.update(extractor(videos), numbers)
        >>> mean, std = statistics.score()
    """

    def __init__(
        self,
        identity: Mapping[str, Any],
        num_samples: int,
        splits: int = 10,
        shuffle_seed: int | None = None,
        device: str | torch.device = "cpu",
    ):
        if identity["output"] not in ("logits", "probabilities"):
            raise ValueError(
                f'The Inception score needs an extractor with the output "logits" or "probabilities", '
                f"{identity['name']!r} gives {identity['output']!r}."
            )
        if not 1 <= splits <= num_samples:
            raise ValueError(f"{splits} splits need at least as many samples and at least 1 split; got {num_samples}.")
        self.num_samples, self.splits, self.num_classes = num_samples, splits, int(identity["dimension"])
        settings = {"identity": dict(identity), "num_samples": num_samples, "splits": splits}
        tensors = {
            "probabilities": torch.zeros(splits, self.num_classes, dtype=torch.float64, device=device),
            "negative_entropy": torch.zeros(splits, dtype=torch.float64, device=device),
            "seen": torch.zeros(num_samples, dtype=torch.uint8, device=device),
        }
        super().__init__({**settings, "shuffle_seed": shuffle_seed}, tensors)
        place = np.arange(num_samples)
        if shuffle_seed is not None:
            place[np.random.RandomState(shuffle_seed).permutation(num_samples)] = np.arange(num_samples)
        # split k is [k n // splits, (k + 1) n // splits)
        self._split = torch.from_numpy(((place + 1) * splits - 1) // num_samples).to(device)

    def update(self, outputs: torch.Tensor, numbers: torch.Tensor) -> Self:
        """
        Adds samples.

        Args:
            outputs (`torch.Tensor` of shape `(B, num_classes)`): What the extractor gives.
            numbers (`torch.Tensor` of shape `(B,)`): Which samples these are, from 0.

        Raises:
            `ValueError`: if shapes do not fit, a value is not finite, probabilities do not add up to 1, or a number is
                out of range or was there before.
        """
        numbers = torch.as_tensor(numbers, device=self.device).long()
        if outputs.shape != (len(numbers), self.num_classes):
            raise ValueError(
                f"Outputs must have the shape (B, {self.num_classes}) with B numbers of samples, got "
                f"{tuple(outputs.shape)} and {len(numbers)} numbers."
            )
        outputs = outputs.detach().to(self.device, torch.float64)
        check_finite(outputs, "outputs")
        self._count(numbers)
        if self.settings["identity"]["output"] == "logits":
            log_probabilities = outputs.log_softmax(dim=1)
            probabilities = log_probabilities.exp()
            entropy = (probabilities * log_probabilities).sum(dim=1)
        else:
            if len(outputs) and not torch.allclose(sums := outputs.sum(dim=1), sums.new_ones(()), atol=1e-3):
                raise ValueError(
                    f"Probabilities add up to {float(sums.min()):.4g} to {float(sums.max()):.4g}, not 1: has the "
                    'extractor the output "logits"?'
                )
            probabilities, entropy = outputs, torch.xlogy(outputs, outputs).sum(dim=1)
        self.tensors["probabilities"].index_add_(0, self._split[numbers], probabilities)
        self.tensors["negative_entropy"].index_add_(0, self._split[numbers], entropy)
        self.tensors["seen"][numbers] = 1
        return self

    def _count(self, numbers: torch.Tensor) -> None:
        bad = (numbers < 0) | (numbers >= self.num_samples)
        if bad.any():
            raise ValueError(f"Samples have the numbers 0 to {self.num_samples - 1}, got {int(numbers[bad][0])}.")
        times = self.tensors["seen"].long().index_add(0, numbers, torch.ones_like(numbers))
        if (times > 1).any():
            raise ValueError(f"Sample {int((times > 1).nonzero()[0])} was measured twice.")

    def _merge(self, other: Mapping[str, torch.Tensor]) -> None:
        both = self.tensors["seen"].bool() & other["seen"].bool()
        if both.any():
            raise ValueError(f"Sample {int(both.nonzero()[0])} was measured twice, in both parts.")
        self.tensors = {name: tensor + other[name] for name, tensor in self.tensors.items()}

    @property
    def count(self) -> int:
        """Number of samples so far."""
        return int(self.tensors["seen"].sum())

    def score(self) -> tuple[float, float]:
        """
        Mean and standard deviation (divisor `splits`, as published) of the splits' scores.

        Raises:
            `ValueError`: if samples are missing.
        """
        if self.count < self.num_samples:
            first = int((self.tensors["seen"] == 0).nonzero()[0])
            raise ValueError(
                f"The score is of {self.num_samples} samples, {self.num_samples - self.count} are missing, first "
                f"{first}."
            )
        sizes = self._split.bincount(minlength=self.splits).double()
        marginal = self.tensors["probabilities"] / sizes[:, None]
        divergence = self.tensors["negative_entropy"] / sizes - torch.xlogy(marginal, marginal).sum(dim=1)
        scores = divergence.exp()
        return float(scores.mean()), float(scores.std(correction=0))


def inception_score(logits: torch.Tensor, splits: int = 10, shuffle_seed: int | None = None) -> tuple[float, float]:
    """
    The Inception score of logits that are all there; [`InceptionStatistics`] takes them batch by batch.

    Args:
        logits (`torch.Tensor` of shape `(N, num_classes)`): Logits of a classifier.
        splits, shuffle_seed: As of [`InceptionStatistics`].

    Returns:
        `tuple[float, float]`: mean and standard deviation over splits.
    """
    identity = {"name": "logits", "output": "logits", "dimension": logits.shape[1]}
    statistics = InceptionStatistics(identity, len(logits), splits, shuffle_seed, logits.device)
    return statistics.update(logits, torch.arange(len(logits))).score()
