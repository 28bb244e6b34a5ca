"""Classification: what a whole image shows, learnt from findings and scored by the AUROC of each class."""

from typing import Final

from medssl_cli.tasks import FigureOfMerit

FIGURE: Final = FigureOfMerit("auroc", "AUROC", "E_GATE_AUROC")
HEAD: Final = "findings"
UNLABELLED: Final = "mean_teacher"
