"""Chains of linear layers between a pooled embedding and a self-supervised loss."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn


def perceptron(
    widths: Sequence[int],
    *,
    has_norms: bool = True,
    last_norm: Literal["none", "scaled", "plain"] = "none",
    last_bias: bool = False,
) -> nn.Sequential:
    """Linear layers with a batch norm and ReLU between them, [N, first width] to [N, last width].

    Args:
        widths: Widths of the input, of each layer between, of the output.
        has_norms: Whether there are batch norms between; where there are not, layers have biases instead.
        last_norm: Norm of the output: none, one that learns a factor for each number, or one that learns nothing.
        last_bias: Whether the last layer has a bias.
    """
    layers: list[nn.Module] = []
    for width_in, width in pairwise(widths[:-1]):
        layers.append(nn.Linear(width_in, width, bias=not has_norms))
        layers += [nn.BatchNorm1d(width)] if has_norms else []
        layers.append(nn.ReLU())
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
    if last_norm != "none":
        norm = nn.BatchNorm1d(widths[-1], affine=last_norm == "scaled")
        if last_norm == "scaled":
            norm.bias.requires_grad_(False)
        layers.append(norm)
    return nn.Sequential(*layers)
