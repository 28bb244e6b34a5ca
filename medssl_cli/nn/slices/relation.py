"""Let a 2D network that segments slice by slice know of the slices around: f_inter's features at its coarsest map.

f_inter of Nguyen et al., AAAI 2023, https://arxiv.org/abs/2212.01893, which the released code drops for segmentation;
scale and shift by features: Perez et al., FiLM, AAAI 2018, https://arxiv.org/abs/1709.07871.

Shapes: B volumes, S slices, N = B S, E embedding, C channels, X Y pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medssl_cli.base.strict import PositiveFloat
from medssl_cli.nn.slices.volume_encoder import VolumeEncoder, VolumeOptions


class Relation(VolumeOptions):
    """How slices know of each other; as `method.relation` of the joint pre-training whose weights are used.

    Args:
        slice_spacing_mm: Between slices as the network gets them: the third of `data.spacing_mm` where that is given,
            else what most images have.
    """

    slice_spacing_mm: PositiveFloat


class SliceRelation(nn.Module):
    """Scale and shift each channel of a slice's coarsest map by what the slice encoder makes of all slices.

    It begins as if it were not there: the linear map to scales and shifts is 0. A shift alone would do little, because
    the instance norms of a decoder subtract what is the same all over a slice.

    Args:
        channels: Channels of the backbone's feature maps.
        options: See `Relation`. Slices are not pooled, so `pooling` does not matter.
    """

    def __init__(self, channels: Sequence[int], options: Relation) -> None:
        super().__init__()
        self.slice_spacing_mm = options.slice_spacing_mm
        self.volume_encoder = VolumeEncoder(channels, options.model_copy(update={"pooling": "mean"}))
        self.modulation = nn.Linear(options.embedding_dim, 2 * channels[-1])
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, maps: Sequence[Tensor], num_slices: int) -> list[Tensor]:
        """Relate.

        Args:
            maps: Feature maps of all slices of all volumes, fine to coarse, [N, C, X, Y].
            num_slices: S; slices of a volume follow each other.

        Returns:
            The maps, of which the coarsest is changed.
        """
        *fine, coarsest = maps
        slices = self.volume_encoder.embedding(maps).unflatten(0, (-1, num_slices))
        is_present = torch.ones(slices.shape[:2], dtype=torch.bool, device=slices.device)
        positions = torch.arange(num_slices, device=slices.device, dtype=torch.float32) * self.slice_spacing_mm
        related = self.volume_encoder.relate(slices, is_present, positions.expand(slices.shape[:2]))
        scale, shift = self.modulation(related).flatten(0, 1)[..., None, None].chunk(2, dim=1)
        return [*fine, coarsest * (1 + scale) + shift]
