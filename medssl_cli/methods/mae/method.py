"""MAE: hide most of an image, and guess what was there from the rest.

`tokens`: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, https://arxiv.org/abs/2111.06377.
`sparse`: Tian et al., SparK, ICLR 2023, https://arxiv.org/abs/2301.03580; of volumes: Wald et al., Revisiting MAE
pre-training for 3D medical image segmentation, CVPR 2025, https://arxiv.org/abs/2410.23132.
`masked_input`: the same question put to an ordinary network, which sees zeros where blocks are hidden.

Shapes: B images of this process, N blocks of an image, K visible ones, P voxels of a block, C channels, X Y Z space.

Differences from the papers and the released code:

- Targets of blocks are standardised channel by channel, not over all channels jointly: channels of a study have other
  units. With one channel, and with colours in the tests, both are the same as published.
- Hidden blocks that show nothing (`flat_below`: air, padding), or that lie partly outside the field of view, take no
  part in the loss. Published: all do; brought to variance 1, their noise is what cannot be guessed.
- Views are zoomed by 0.8 to 1.25 (published: areas of 0.2 to 1 of a photograph) and not flipped; intensities change a
  little.
- The mean is over the hidden blocks of all processes (published: of each process, then over them).
- `sparse`: the image is masked before the first convolution; in the released code of the 3D network it is not, so that
  features beside a block see into it. The loss is divided by the channels too. One decoder, that of our segmentations
  with skips, serves 2D and 3D; SparK adds maps while it doubles their size.
- `masked_input` is ours, the default of networks of convolutions: a few steps on small images, without new layers.
"""

from math import prod
from typing import Final

import torch
from torch import Tensor

from medssl_cli.base.errors import UsageError
from medssl_cli.methods import HidingMethod, Losses, Views
from medssl_cli.methods.mae.guessers import Guesser, MaskedGuesser, SparseGuesser, TokenGuesser
from medssl_cli.methods.mae.options import Options, Rules
from medssl_cli.nn.axes import Axes, per_axis
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.distributed import synchronise_norms
from medssl_cli.nn.hidden_blocks import (
    block_grid,
    cut_blocks,
    guess_pictures,
    guess_spread,
    joined_blocks,
    mean_over,
    smoothed,
    standardised_blocks,
    standardised_images,
    telling_blocks,
    visible_means,
)
from medssl_cli.nn.measured import MeasuredBaselines
from medssl_cli.nn.tokens import TokenBackbone

MEASURED: Final = ("visible_mean", "surroundings")


def reconstruction_loss(guessed: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Mean squared distance of guessed blocks from true ones, over the blocks that count.

    Of targets with variance 1 (of n - 1), a guess of 0 costs (n - 1) / n.

    Args:
        guessed: [B, N, P, C].
        targets: [B, N, P, C].
        counts: Which blocks count in which channel, bool [B, N, C].

    Returns:
        Scalar whose mean over processes is the mean over all that counts.
    """
    return mean_over((guessed.float() - targets.float()).square().mean(dim=2), counts)


class Method(HidingMethod):
    """Guessing hidden blocks of views of `crop_size` voxels.

    Args:
        backbone: Backbone of two or three spatial dimensions.
        options: See `Options`.
        crop_size: Voxels (x, y, z) of a view, z 1 in 2D.

    Raises:
        UsageError: `E_RECIPE`, options, backbone and crop do not go together.
    """

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        has_tokens = isinstance(backbone, TokenBackbone)
        self.rules = Rules.of(options, has_tokens=has_tokens, spatial_dims=backbone.spatial_dims)
        try:
            self.blocks, self.num_hidden = self._blocks()
            self.guesser = self._guesser()
        except ValueError as error:
            raise UsageError("E_RECIPE", f"method mae: {error}") from error
        self.measured = MeasuredBaselines(() if self.rules.normalise == "block" else MEASURED)
        synchronise_norms(self)

    def _blocks(self) -> tuple[Axes, int]:
        """Blocks along each axis, and how many of each image are hidden."""
        rules, coarsest = self.rules, self.backbone.strides[-1]
        side = self.options.block
        block = coarsest if side is None else per_axis(side, self.backbone.spatial_dims)
        if rules.variant == "tokens" and block != coarsest:
            raise ValueError(f"variant tokens hides patches of {list(coarsest)} voxels: leave method.block out")
        grid = block_grid(self.size, block)
        num_hidden = rules.num_hidden(prod(grid))
        if not 0 < num_hidden < prod(grid):
            raise ValueError(
                f"a ratio of {rules.ratio} hides {num_hidden} of {prod(grid)} blocks of {list(block)} voxels"
            )
        return grid, num_hidden

    def _guesser(self) -> Guesser:
        """What goes from the network's output to voxels."""
        backbone, options, variant = self.backbone, self.options, self.rules.variant
        num_voxels = prod(self.size) // prod(self.blocks)
        if variant == "tokens":
            if not isinstance(backbone, TokenBackbone):
                raise ValueError("variant tokens needs a backbone of tokens, such as vit")
            return TokenGuesser(backbone, options.token_decoder, self.blocks, num_voxels)
        guesser = MaskedGuesser if variant == "masked_input" else SparseGuesser
        return guesser(backbone, options.decoder, self.size, self.blocks)

    def loss(self, views: Views, progress: float) -> Losses:
        """Mean squared distance over hidden blocks."""
        [images] = views.images
        hidden, is_inside = self.hidden(views)
        blocks = cut_blocks(images.float(), self.blocks)
        targets = self._targets(blocks)
        counts = telling_blocks(blocks, flat_below=self.rules.flat_below)
        counts &= (is_inside & hidden).flatten(1)[..., None]
        guessed = self.guesser(self.backbone, images, hidden)
        loss = reconstruction_loss(guessed, targets, counts)
        if self.measured.is_open():
            self.measured.add(self._trivial(targets, hidden, counts))
        diagnostics = {
            "output_spread": guess_spread(guessed, targets, counts),
            "blocks_used": counts.float().mean(dim=2).sum() / hidden.sum(),
        }
        return Losses(loss, {"reconstruction": loss.detach()}, diagnostics)

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Pictures of what some views show, of what of it is visible, and of what is guessed of the rest."""
        [images] = views.images
        hidden, _ = self.hidden(views)
        blocks = cut_blocks(images.float(), self.blocks)
        guessed = self._as_shown(self.guesser(self.backbone, images, hidden).float(), blocks)
        return guess_pictures(images.float(), joined_blocks(guessed, self.blocks, self.size), hidden)

    def _as_shown(self, guessed: Tensor, blocks: Tensor) -> Tensor:
        """Guesses in the units of the image, with the means and deviations that their targets lost."""
        if self.rules.normalise == "input":
            return guessed
        axes = (2,) if self.rules.normalise == "block" else (1, 2)
        return guessed * blocks.std(axes, keepdim=True) + blocks.mean(axes, keepdim=True)

    def _targets(self, blocks: Tensor) -> Tensor:
        """What is to be guessed, [B, N, P, C]."""
        if self.rules.normalise == "input":
            return blocks
        return standardised_blocks(blocks) if self.rules.normalise == "block" else standardised_images(blocks)

    def _trivial(self, targets: Tensor, hidden: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """Losses of the mean of what is visible, and of the means around each voxel."""
        images = joined_blocks(targets, self.blocks, self.size)
        around = cut_blocks(smoothed(images, hidden), self.blocks)
        mean = visible_means(targets, hidden.flatten(1)).expand_as(targets)
        guesses = dict(zip(MEASURED, (mean, around), strict=True))
        return {name: reconstruction_loss(guess, targets, counts) for name, guess in guesses.items()}

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """A guess of 0 of blocks with variance 1; `measured_baselines` has the others."""
        number = prod(self.size) // prod(self.blocks)
        return {"block_mean": (number - 1) / number} if self.rules.normalise == "block" else {}
