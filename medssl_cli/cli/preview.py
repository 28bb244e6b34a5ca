"""The picture beside an answer."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.volume import Volume
from medssl_cli.report import Colour

if TYPE_CHECKING:
    from medssl_cli.deploy.whole_answers import WholeAnswer


def draw_preview(
    volume: Volume,
    answer: "NDArray[np.uint8] | WholeAnswer",
    classes: Mapping[int, str],
    colours: Mapping[int, Colour] | None = None,
) -> bytes:
    """PNG of an image with what a model says of it; it bears the mark of what inference writes.

    Args:
        volume: Image under the answer.
        answer: Label map `[X, Y, Z]`, findings, or boxes.
        classes: Names by label value; of findings and boxes by place, from 1 on.
        colours: Colours by the same numbers, instead of those of the palette.
    """
    from PIL.PngImagePlugin import PngInfo

    from medssl_cli.deploy.answer_pictures import answer_picture
    from medssl_cli.formats.predictions import PREVIEW_SOFTWARE

    buffer = io.BytesIO()
    mark = PngInfo()
    mark.add_text("Software", PREVIEW_SOFTWARE)
    answer_picture(volume, answer, classes, colours).save(buffer, format="PNG", pnginfo=mark)
    return buffer.getvalue()
