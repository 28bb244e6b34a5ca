"""The picture beside a mask."""

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.volume import Volume
from medssl_cli.report import Colour


def draw_preview(
    volume: Volume, labels: NDArray[np.uint8], classes: Mapping[int, str], colours: Mapping[int, Colour] | None = None
) -> bytes:
    """PNG of three planes with the label map over the image; it bears the mark of what inference writes."""
    from PIL.PngImagePlugin import PngInfo

    from medssl_cli.formats.predictions import PREVIEW_SOFTWARE
    from medssl_cli.report.pictures import mid_planes

    window = (-200.0, 600.0) if volume.units == "HU" else None
    picture = mid_planes(volume.voxels[0], volume.affine, mask=labels, classes=classes, window=window, colours=colours)
    buffer = io.BytesIO()
    mark = PngInfo()
    mark.add_text("Software", PREVIEW_SOFTWARE)
    picture.save(buffer, format="PNG", pnginfo=mark)
    return buffer.getvalue()
