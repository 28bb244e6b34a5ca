"""How results are shown and judged, by the figure that sums them up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from medssl_cli.report.classification import classification_page
from medssl_cli.report.detection import detection_page
from medssl_cli.report.evaluation import Shown, box_picture, evaluation_page, segmentation_picture


@dataclass(frozen=True)
class Figure:
    """One kind of results.

    Args:
        title: Of the figure, in messages.
        gate: Code of a figure below its limit.
        page: HTML, from the document of results and its pictures.
        draw: What draws those pictures, from the classes.
    """

    title: str
    gate: str
    page: Callable[[dict[str, Any], list[Shown]], str]
    draw: Callable[[dict[int, str]], Callable[..., Image.Image]] = segmentation_picture


FIGURES: Final = {
    "dice": Figure("Dice", "E_GATE_DICE", evaluation_page),
    "auroc": Figure("AUROC", "E_GATE_AUROC", lambda document, _: classification_page(document)),
    "average_precision": Figure("average precision", "E_GATE_AP", detection_page, box_picture),
}
