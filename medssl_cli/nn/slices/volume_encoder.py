"""From the feature maps of a volume's slices to one vector per slice and one per volume: f_intra's end and f_inter.

Nguyen et al., AAAI 2023, https://arxiv.org/abs/2212.01893.

Shapes: B volumes, S slices, N = slices of all volumes, E embedding, C channels, X Y pixels.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from medssl_cli.base.strict import PositiveFloat, PositiveInt, Strict
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.slices.embedding import SliceEmbedding
from medssl_cli.nn.slices.encoder import AttentionPool, SliceEncoder, mean_pool


class VolumeOptions(Strict):
    """How slices become a volume.

    Args:
        relation: Deformable attention between slices; `none` leaves each slice for itself.
        embedding_dim: E.
        num_layers: Number of layers of the slice encoder.
        num_heads: Number of heads of its attention.
        num_points: Places that each head looks at.
        ffn_ratio: Hidden width of its perceptrons, in E.
        dropout: Probability.
        pre_norm: See `SliceEncoder`.
        has_positions: Use the positions of slices in mm.
        reference_spacing_mm: See `SliceEncoder`.
        pooling: Plain mean of the slices, or one with learnt weights.
        repeats_last: The last level stands twice in the slice embedding, as in the released code.
    """

    relation: Literal["deformable", "none"] = "deformable"
    embedding_dim: PositiveInt = 256
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 8
    num_points: PositiveInt = 4
    ffn_ratio: PositiveFloat = 4.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    pre_norm: bool = True
    has_positions: bool = True
    reference_spacing_mm: PositiveFloat | None = None
    pooling: Literal["mean", "attention"] = "mean"
    repeats_last: bool = False

    @model_validator(mode="after")
    def _divides(self) -> Self:
        """Embeddings divide into heads, and into sines and cosines."""
        if self.embedding_dim % self.num_heads or self.embedding_dim % 2:
            raise ValueError(f"embedding_dim {self.embedding_dim} must be even, and a multiple of num_heads")
        return self


class VolumeEncoder(nn.Module):
    """Slice embedding, slice encoder and pool.

    Args:
        channels: Channels of the backbone's feature maps.
        options: See `VolumeOptions`.
    """

    def __init__(self, channels: Sequence[int], options: VolumeOptions) -> None:
        super().__init__()
        size = options.embedding_dim
        self.embedding_dim = size
        self.embedding = SliceEmbedding(channels, size, repeats_last=options.repeats_last)
        self.encoder: SliceEncoder | None = None
        if options.relation == "deformable":
            self.encoder = SliceEncoder(
                size,
                num_layers=options.num_layers,
                num_heads=options.num_heads,
                num_points=options.num_points,
                ffn_ratio=options.ffn_ratio,
                dropout=options.dropout,
                pre_norm=options.pre_norm,
                has_positions=options.has_positions,
                reference_spacing_mm=options.reference_spacing_mm,
            )
        self.attention_pool = AttentionPool(size) if options.pooling == "attention" else None

    def relate(self, slices: Tensor, is_present: Tensor, positions_mm: Tensor) -> Tensor:
        """Let slices [B, S, E] know of each other, bool [B, S] and float [B, S]; 0 at padding."""
        if self.encoder is None:
            return slices.masked_fill(~is_present[..., None], 0.0)
        related: Tensor = self.encoder(slices, is_present, positions_mm)
        return related

    def pool(self, related: Tensor, is_present: Tensor) -> Tensor:
        """One vector [B, E] of related slices [B, S, E]."""
        if self.attention_pool is None:
            return mean_pool(related, is_present)
        pooled: Tensor = self.attention_pool(related, is_present)
        return pooled


class SliceNetwork(nn.Module):
    """Backbone and volume encoder as one network, to export.

    Args:
        backbone: Backbone of two spatial dimensions.
        volume_encoder: Volume encoder of its feature maps.
    """

    def __init__(self, backbone: Backbone, volume_encoder: VolumeEncoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.volume_encoder = volume_encoder

    def forward(self, images: Tensor, is_present: Tensor, positions_mm: Tensor) -> tuple[Tensor, Tensor]:
        """Slices of volumes to embeddings.

        Args:
            images: Network input [B, S, C, X, Y].
            is_present: False where a slice is padding, bool [B, S].
            positions_mm: Positions in mm of the slices along their normal, [B, S].

        Returns:
            Embeddings of slices by themselves [B, S, E], 0 at padding, and of volumes [B, E].
        """
        flat = self.volume_encoder.embedding(self.backbone(images.flatten(0, 1)))
        slices = flat.unflatten(0, images.shape[:2]).masked_fill(~is_present[..., None], 0.0)
        related = self.volume_encoder.relate(slices, is_present, positions_mm)
        return slices, self.volume_encoder.pool(related, is_present)
