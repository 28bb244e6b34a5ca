"""Three tasks on two damaged copies of a crop: its quarter-turn, what it showed, and which is its other copy.

Tang et al., Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis, CVPR 2022,
https://arxiv.org/abs/2111.14791.

Shapes: B images of this process, N = 2 B copies (one of all images after the other), C channels, X Y Z space (X Y in
2D), E embedding.

Differences from the paper and the released code:

- Crops turn within the slices, about z, as the paper says; the code turns about the patient's left-right axis. They
  turn only where x and y have equal spacing and size.
- The heads read the mean of the network's embedding levels; in the code each reads one token in a corner.
- The contrast is over the batches of all processes; in the code each process has its own.
- Noise lies between the 0.5 and 99.5 percentiles of the image, also of one that is z-scored; in the code between 0 and
  1. Sides of boxes are at least 2 voxels: in the code crops of 16 fail, and boxes of one voxel divide 0 by 0.
- Any backbone of feature maps, in 2D too.
- The restoration covers the voxels within the field of view.
- Views are zoomed by 0.8 to 1.25; intensities change a little.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medssl_cli.base.errors import UsageError
from medssl_cli.data.augmentation import Draws
from medssl_cli.methods import Losses, RestoringMethod, Views
from medssl_cli.methods.swin_pretext.damage import draw_boxes, noise_like, turned
from medssl_cli.methods.swin_pretext.options import Options
from medssl_cli.methods.swin_pretext.restorer import Restorer
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.contrast import view_contrast
from medssl_cli.nn.distributed import gather, rank, sum_over_processes, synchronise_norms, world_size
from medssl_cli.nn.measured import MeasuredBaselines
from medssl_cli.nn.side_by_side import side_by_side

TURNS: Final = 4
EVEN: Final = 0.01
"""Spacings that differ by less than this share count as equal."""
TASKS: Final = ("rotation", "contrast", "restoration")
MEASURED: Final = ("median", "copy")
SHOWN_IMAGES: Final = 3
SOLVED: Final = 0.99
SOLVED_BY: Final = 0.05


def turn_loss(scores: Tensor, turns: Tensor, counts: Tensor) -> Tensor:
    """Cross entropy of quarter-turns; ln 4 where scores are equal.

    Args:
        scores: [N, 4].
        turns: 0 to 3, [N].
        counts: Which copies may turn at all, bool [N].

    Returns:
        Scalar whose mean over processes is the mean over all copies that count.
    """
    errors = F.cross_entropy(scores.float(), turns, reduction="none")
    total = sum_over_processes(counts.sum().to(errors.dtype)).clamp(min=1)
    return (errors * counts).sum() / total * world_size()


def distance(restored: Tensor, true: Tensor, is_shown: Tensor) -> Tensor:
    """Mean absolute distance over the voxels that show something.

    Args:
        restored: [N, C, X, Y, Z].
        true: True images of the same shape.
        is_shown: Bool [N, X, Y, Z].

    Returns:
        Scalar whose mean over processes is the mean over all of them.
    """
    errors = (restored.float() - true.float()).abs() * is_shown[:, None]
    total = sum_over_processes(is_shown.sum().to(errors.dtype)).clamp(min=1) * true.shape[1]
    return errors.sum() / total * world_size()


class Method(RestoringMethod):
    """The three tasks on views of `crop_size` voxels.

    Args:
        backbone: Backbone of two or three spatial dimensions.
        options: See `Options`.
        crop_size: Voxels (x, y, z) of a view, z 1 in 2D; x and y are equal.

    Raises:
        UsageError: `E_RECIPE`, the crop cannot turn.
    """

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        if options.rotation_weight > 0 and crop_size[0] != crop_size[1]:
            raise UsageError(
                "E_RECIPE",
                f"data.crop_size {list(crop_size)}: swin_pretext turns crops by quarters within x and y",
                hint="make x and y equal, or set method.rotation_weight=0",
            )
        self.rotation = nn.Linear(backbone.embedding_dim, TURNS)
        self.projector = nn.Linear(backbone.embedding_dim, options.projection_dim)
        self.restorer = Restorer(backbone)
        self.measured = MeasuredBaselines(MEASURED)
        self._batch_size = 0
        synchronise_norms(self)

    def require_batch(self, batch_size: int) -> None:
        """Refuse batches of one image, of which there is no other to tell its copies from.

        Raises:
            UsageError: `E_RECIPE`.
        """
        if batch_size < 2 and (self.options.contrast_weight > 0 or self.options.swap):
            raise UsageError(
                "E_RECIPE",
                f"data.batch_size {batch_size}: swin_pretext contrasts images, and needs at least 2",
                hint="or set method.contrast_weight=0 and method.swap=false",
            )
        self._batch_size = batch_size

    def loss(self, views: Views, progress: float) -> Losses:
        """Sum of the three tasks with their weights."""
        damaged, true, turns, can_turn, is_shown = self.copies(views)
        maps = self.backbone(damaged)
        embeddings = self.backbone.pool(maps)
        scores = self.rotation(embeddings)
        contrast = view_contrast(*self.projector(embeddings).chunk(2), temperature=self.options.temperature)
        errors = (
            turn_loss(scores, turns, can_turn),
            contrast.loss,
            distance(self.restorer(maps[-1]), true, is_shown),
        )
        options = self.options
        weights = options.rotation_weight, options.contrast_weight, options.restoration_weight
        parts = [weight * error for weight, error in zip(weights, errors, strict=True)]
        if self.measured.is_open():
            medians = true.float().flatten(2).median(dim=2).values
            constant = medians.view(*medians.shape, *[1] * (true.ndim - 2)).expand_as(true)
            self.measured.add(
                {
                    name: distance(guess, true, is_shown)
                    for name, guess in zip(MEASURED, (constant, damaged), strict=True)
                }
            )
        told = ((scores.detach().argmax(dim=1) == turns) & can_turn).float().sum() / can_turn.sum().clamp(min=1)
        shown = {"turns_told": told, "copies_found": contrast.accuracy, "damaged": self._changed(damaged, true)}
        detached = dict(zip(TASKS, (part.detach() for part in parts), strict=True))
        return Losses(torch.stack(parts).sum(), detached, shown)

    def _changed(self, damaged: Tensor, true: Tensor) -> Tensor:
        """Share of voxels that are damaged."""
        return (damaged != true).any(dim=1).float().mean()

    def copies(self, views: Views) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Two damaged copies of each view.

        Returns:
            Damaged copies and undamaged ones, turned alike, [N, C, X, Y, Z]; turns and which may turn at all, [N]; and
            which voxels show something, bool [N, X, Y, Z].
        """
        [images], places, draws = views.images, views.places, views.draws
        assert places is not None
        spacing = places.affines[:, :3, :2].norm(dim=1)
        is_even = ((spacing[:, 0] / spacing[:, 1] - 1).abs() < EVEN) & (self.size[0] == self.size[1])
        copies = []
        for _ in range(2):
            turns = (draws.uniform((len(images),)) * TURNS).long() * is_even
            true = turned(images, turns)
            is_shown = turned(places.is_shown[:, None], turns)[:, 0]
            copies.append(
                (self._damaged(true, views), true, turns.to(images.device), is_even.to(images.device), is_shown)
            )
        first, second = copies
        damaged, true, turns, can_turn, is_shown = (torch.cat(pair) for pair in zip(first, second, strict=True))
        return damaged, true, turns, can_turn, is_shown

    def _damaged(self, images: Tensor, views: Views) -> Tensor:
        """One damaged copy of each image: boxes of noise, then boxes of what another image shows."""
        options, draws, batch = self.options, views.draws, len(images)
        boxes = self._boxes(batch, draws).to(images.device)
        noise = draws.normal(tuple(images.shape)).to(images)
        damaged = torch.where(boxes, noise_like(images, noise), images)
        if not options.swap:
            return damaged
        partners = (draws.uniform((batch,)) * batch * world_size()).long()
        own = torch.arange(batch) + rank() * batch
        others = gather(damaged)[partners.to(images.device)]
        boxes = self._boxes(batch, draws).to(images.device)
        is_other = (partners != own).to(images.device).view(-1, *[1] * (images.ndim - 1))
        return torch.where(boxes & is_other, others, damaged)

    def _boxes(self, batch: int, draws: Draws) -> Tensor:
        """Which voxels of each image are in boxes, bool [B, 1, X, Y, Z]."""
        return draw_boxes(self.size, batch, draws, most=self.options.damage, sides=self.options.box_sides)[:, None]

    def measured_baselines(self) -> dict[str, float]:
        """Turns and copies told by chance, with the median of each image, and with what is damaged left as it is."""
        options, found = self.options, self.measured.values()
        chance = options.rotation_weight * log(TURNS) + options.contrast_weight * log(max(2 * self._batch_size - 1, 1))
        return {name: chance + options.restoration_weight * value for name, value in found.items()}

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """Turns that are told at once: tables, air and gravity tell them, and they teach nothing more."""
        early = [entry for entry in logged if entry["step"] <= SOLVED_BY * self.num_steps]
        told = early[-1].get("turns_told") if early else None
        if told is None or told <= SOLVED or self.options.rotation_weight == 0:
            return []
        return [f"turns are told by {told:.3f} within {SOLVED_BY:.0%} of the steps: something trivial gives them away"]

    @torch.no_grad()
    def pictures(self, views: Views) -> dict[str, Tensor]:
        """Pictures of a damaged copy of some views, of what was restored, and of what is true."""
        damaged, true, *_ = self.copies(views)
        restored = self.restorer(self.backbone(damaged)[-1]).float()
        rows = [[a[0], b[0], c[0]] for a, b, c in zip(true[:SHOWN_IMAGES], damaged, restored, strict=False)]
        return {"turned, damaged, restored": side_by_side(rows)}
