"""Segmentation: one class per voxel of a volume, or regions that overlap, learnt from label maps and scored by Dice."""

from typing import Final

from medssl_cli.tasks import FigureOfMerit

FIGURE: Final = FigureOfMerit("dice", "Dice", "E_GATE_DICE")
HEAD: Final = "masks"
UNLABELLED: Final = "bcp"
