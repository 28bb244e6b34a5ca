"""Embeddings of many views of different sizes, with one pass of the backbone for each size.

So the released SwAV does, and batch normalisation sees all views of a size as one batch.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from medssl_cli.nn.backbones import Backbone


def embed_views(backbone: Backbone, views: Sequence[Tensor]) -> Tensor:
    """Embed views, of which those of equal size follow each other.

    Args:
        backbone: Of two spatial dimensions.
        views: Per view [B, C, X, Y].

    Returns:
        [V * B, embedding_dim], one view after the other.
    """
    groups = [list(group) for _, group in groupby(views, key=lambda view: view.shape[2:])]
    return torch.cat([backbone.embed(torch.cat(group)) for group in groups])
