"""What a recipe may say of `swin_pretext`."""

from typing import Self

from pydantic import model_validator

from medssl_cli.base.strict import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, ShareRange
from medssl_cli.methods import RestoringOptions


class Options(RestoringOptions):
    """What is damaged, and how much each task counts.

    Args:
        damage: Boxes are drawn until they count a share of the voxels, which is drawn between 0 and this; where they
            overlap, voxels count twice.
        box_sides: Sides of boxes as shares of the view's, smallest and largest; at least 2 voxels.
        swap: Damage a second time, with what another image of the batch shows there.
        projection_dim: Size of the projections that are contrasted.
        temperature: Temperature of the contrast.
        rotation_weight: Weight of telling the quarter-turn.
        contrast_weight: Weight of finding the other copy.
        restoration_weight: Weight of the mean absolute distance from the undamaged view.
    """

    damage: Probability = 0.3
    box_sides: ShareRange = (0.05, 0.25)
    swap: bool = True
    projection_dim: PositiveInt = 512
    temperature: PositiveFloat = 0.5
    rotation_weight: NonNegativeFloat = 1.0
    contrast_weight: NonNegativeFloat = 1.0
    restoration_weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.rotation_weight + self.contrast_weight + self.restoration_weight <= 0:
            raise ValueError("one of the three weights must be above 0")
        return self
