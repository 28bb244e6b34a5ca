"""The encoder of SwinUNETR-v2: windowed attention with a convolution block before each stage.

SwinUNETR: Hatamizadeh et al., BrainLes 2021, https://arxiv.org/abs/2201.01266; SwinUNETR-V2: He et al., MICCAI 2023,
https://doi.org/10.1007/978-3-031-43901-8_40. Parts have the names and shapes of `monai.networks.nets.SwinUNETR` with
`use_v2=True` (or False, on request), so published encoders (VoCo and others) load by name.

Shapes: B batch, C channels, X Y Z space.
"""

import re
from typing import Final, cast

from monai.networks.blocks import UnetrBasicBlock
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from medssl_cli.base.errors import UsageError
from medssl_cli.nn.backbones import Backbone, hide, require_canvas, run_part
from medssl_cli.nn.window_attention import attend_in_chunks

Stages = tuple[int, int, int, int]
WINDOW = 7
STRIDES = (1, 2, 4, 8, 16, 32)
WIDTHS = (1, 1, 2, 4, 8, 16)
LEVEL_OF_BLOCK: Final = {"swinViT": 0, "encoder1": 0, "encoder2": 0, "encoder3": 1, "encoder4": 2, "encoder10": 4}
"""Level of the map that each block takes, of those that maps pass and of what is left of the transformer."""
EMBEDDING_LEVELS = (0, 1, 2, 3, 5)  # published VoCo encoders do not pool the map of stride 16


def build(
    in_channels: int,
    spatial_dims: int = 3,
    *,
    feature_size: int = 48,
    depths: Stages = (2, 2, 2, 2),
    num_heads: Stages = (3, 6, 12, 24),
    use_v2: bool = True,
    use_checkpoint: bool = False,
) -> Backbone:
    """Build a SwinUNETR encoder; its embedding has 24 x `feature_size` numbers.

    Args:
        in_channels: Channels of the image.
        spatial_dims: 2 or 3.
        feature_size: Width of the finest level: 48, 96 and 192 are the published sizes B, L and H.
        depths: Attention blocks per stage.
        num_heads: Attention heads per stage; each divides its stage's width, `feature_size` times 1, 2, 4, 8.
        use_v2: A convolution block before each stage, as in SwinUNETR-v2 and all weights of VoCo.
        use_checkpoint: Compute activations twice instead of keeping them: slower, less memory.

    Raises:
        UsageError: `E_RECIPE`, sizes that do not go together.
    """
    widths = [feature_size * 2**stage for stage in range(4)]
    if len(depths) != 4 or len(num_heads) != 4:
        raise UsageError("E_RECIPE", f"swinunetr has 4 stages; got {len(depths)} depths and {len(num_heads)} num_heads")
    if min(feature_size, *num_heads) < 1 or any(width % heads for width, heads in zip(widths, num_heads, strict=True)):
        raise UsageError(
            "E_RECIPE",
            f"swinunetr cannot divide widths {widths} among {list(num_heads)} attention heads",
            hint="make backbone.feature_size a multiple of 12, or change backbone.num_heads",
        )
    return SwinUNETREncoder(in_channels, spatial_dims, feature_size, depths, num_heads, use_v2, use_checkpoint)


class SwinUNETREncoder(Backbone):
    """Six maps at strides 1 to 32; all but the one at stride 16 pass a residual block and are pooled."""

    def __init__(
        self,
        in_channels: int,
        spatial_dims: int,
        feature_size: int,
        depths: Stages,
        num_heads: Stages,
        use_v2: bool,
        use_checkpoint: bool,
    ) -> None:
        channels = tuple(width * feature_size for width in WIDTHS)
        super().__init__(
            channels=channels, strides=STRIDES, embedding_levels=EMBEDDING_LEVELS, spatial_dims=spatial_dims
        )
        self.use_checkpoint = use_checkpoint
        self.swinViT = SwinTransformer(
            in_chans=in_channels,
            embed_dim=feature_size,
            window_size=(WINDOW,) * spatial_dims,
            patch_size=(2,) * spatial_dims,
            depths=depths,
            num_heads=num_heads,
            use_checkpoint=use_checkpoint,
            spatial_dims=spatial_dims,
            use_v2=use_v2,
        )
        attend_in_chunks(self.swinViT)

        def block(width_in: int, width: int) -> nn.Module:
            return cast(
                nn.Module,
                UnetrBasicBlock(
                    spatial_dims, width_in, width, kernel_size=3, stride=1, norm_name="instance", res_block=True
                ),
            )

        self.encoder1 = block(in_channels, channels[0])
        self.encoder2 = block(channels[1], channels[1])
        self.encoder3 = block(channels[2], channels[2])
        self.encoder4 = block(channels[3], channels[3])
        self.encoder10 = block(channels[5], channels[5])

    def level_of(self, name: str) -> int | None:
        """See `Backbone.level_of`; the patch embedding is 0, the first stage 1."""
        if (stage := re.match(r"swinViT\.layers(\d)", name)) is not None:
            return int(stage[1])
        return LEVEL_OF_BLOCK[name.partition(".")[0]]

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        """See `Backbone.forward`. Hidden blocks are 0, and a token of nothing else is the bias of the patch embedding.

        A token of its own for what is hidden would not do, because convolutions of full resolution see the image too;
        and published encoders have none.

        Raises:
            UsageError: `E_CANVAS`, a size is no multiple of 32, or all are 32 and leave one cell to normalise over.
        """
        require_canvas(images, self.crop_multiple, "swinunetr")
        x = hide(images, hidden)
        states = self.swinViT(x, normalize=True)
        return [
            run_part(self.encoder1, x, use_checkpoint=self.use_checkpoint),
            run_part(self.encoder2, states[0], use_checkpoint=self.use_checkpoint),
            run_part(self.encoder3, states[1], use_checkpoint=self.use_checkpoint),
            run_part(self.encoder4, states[2], use_checkpoint=self.use_checkpoint),
            states[3],
            run_part(self.encoder10, states[4], use_checkpoint=self.use_checkpoint),
        ]
