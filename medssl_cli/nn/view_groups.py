"""Embeddings of many views of different sizes, with one pass of the backbone for each size.

So the released SwAV does, and batch normalisation sees all views of a size as one batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from medssl_cli.nn.backbones import Backbone


def embed_views(backbone: Backbone, groups: Sequence[Tensor]) -> Tensor:
    """Embed views of single images.

    Args:
        backbone: Backbone of two spatial dimensions.
        groups: Groups per size, [V * B, C, X, Y].

    Returns:
        [V * B of all groups, embedding_dim], one view after the other.
    """
    return torch.cat([backbone.embed(group) for group in groups])
