# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What single operations cost, forward and backward."""

from math import prod

from torch import nn


class FlopCount:
    """
    A running sum. Each rule takes whether its inputs require gradients and tells whether its result does, as autograd
    would: a weight that learns costs one product in the backward pass, an input that requires gradients another.

    Attributes:
        forward (`int`), backward (`int`): FLOPs so far.
        recomputed (`int`): FLOPs of forward passes that gradient checkpointing repeats.
    """

    def __init__(self) -> None:
        self.forward = self.backward = self.recomputed = 0

    def add(self, other: "FlopCount") -> None:
        """Adds another sum."""
        self.forward += other.forward
        self.backward += other.backward
        self.recomputed += other.recomputed

    def linear(self, module: nn.Module, rows: int, grad: bool) -> bool:
        """All linear layers in `module`, one after the other, each over `rows` rows."""
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                cost = 2 * rows * layer.in_features * layer.out_features
                grad = self._product(cost, grad, layer.weight.requires_grad) or is_trained(layer)
        return grad

    def convolution(self, layer: nn.Module, positions: int, grad: bool) -> bool:
        """A convolution with that many output positions over the whole batch."""
        window = layer.in_channels // layer.groups * prod(layer.kernel_size)
        return self._product(2 * positions * layer.out_channels * window, grad, layer.weight.requires_grad)

    def attention(
        self, batch_size: int, queries: int, keys: int, width: int, query_grad: bool, key_grad: bool, value_grad: bool
    ) -> None:
        """Scores and weighted sum of all heads, which are `width` channels together."""
        product = 2 * batch_size * queries * keys * width
        self.forward += 2 * product
        # the gradients of values, weights, queries and keys are one product each
        self.backward += product * (value_grad + (query_grad or key_grad) + query_grad + key_grad)

    def _product(self, cost: int, grad: bool, trained: bool) -> bool:
        self.forward += cost
        self.backward += cost * (grad + trained)
        return grad or trained


def is_trained(module: nn.Module) -> bool:
    """Whether any parameter of a module requires gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())
