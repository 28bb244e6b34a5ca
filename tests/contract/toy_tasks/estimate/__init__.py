"""Estimate: a toy task that learns a number of each image, such as a share, from the findings of that name."""

from typing import Final

from medssl_cli.tasks import FigureOfMerit

FIGURE: Final = FigureOfMerit("agreement", "agreement")
HEAD: Final = "numbers"
