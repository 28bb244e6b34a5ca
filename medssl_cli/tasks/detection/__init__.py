"""Detection: boxes of each class in pictures and in volumes, learnt from boxes and scored by average precision."""

from typing import Final

from medssl_cli.tasks import FigureOfMerit

FIGURE: Final = FigureOfMerit("average_precision", "average precision", "E_GATE_AP")
HEAD: Final = "boxes"
