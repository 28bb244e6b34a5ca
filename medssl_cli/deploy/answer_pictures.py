"""What answers look like: a picture for each, and a scene for the slice viewer."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.deploy.whole_answers import FoundBox, WholeAnswer
from medssl_cli.imaging.placement import move_boxes
from medssl_cli.imaging.volume import Volume
from medssl_cli.report import Colour, structure_colours
from medssl_cli.report.boxes import ShownBox, box_picture, box_window
from medssl_cli.report.findings import Bar, findings_picture
from medssl_cli.report.pictures import mid_planes, tissue_window
from medssl_cli.report.viewer import Scene, scene_of

FINDINGS: Final = "findings"
CONTEXT_MM: Final = 30.0
Drawable = NDArray[np.uint8] | WholeAnswer
"""A label map `[X, Y, Z]`, findings or boxes."""


def answer_picture(
    volume: Volume, answer: Drawable, classes: Mapping[int, str], colours: Mapping[int, Colour] | None = None
) -> Image.Image:
    """A picture of an image with what a model says of it.

    Args:
        volume: Image under the answer.
        answer: The answer; of boxes those are drawn that reach their operating point.
        classes: Names by label value; of findings and boxes by place, from 1 on.
        colours: Colours by the same numbers, instead of those of the palette.
    """
    window = tissue_window(volume)
    if not isinstance(answer, WholeAnswer):
        return mid_planes(volume.voxels[0], volume.affine, mask=answer, classes=classes, window=window, colours=colours)
    if answer.head == FINDINGS:
        bars = [Bar(name, score, answer.thresholds.get(name, 1.0)) for name, score in answer.findings.items()]
        return findings_picture(volume, bars, window=window)
    numbered = {**structure_colours(classes), **(colours or {})}
    return box_picture(volume, shown_boxes(volume, answer), {name: numbered[n] for n, name in classes.items()})


def answer_scene(volume: Volume, answer: Drawable, *, max_bytes: int) -> Scene:
    """The same for the slice viewer."""
    window = tissue_window(volume)
    if not isinstance(answer, WholeAnswer):
        return scene_of(volume, answer, window=window, margin_mm=CONTEXT_MM, max_bytes=max_bytes)
    boxes = shown_boxes(volume, answer)
    window = window if answer.head == FINDINGS else box_window(volume)
    return scene_of(volume, boxes=boxes, window=window, margin_mm=CONTEXT_MM, max_bytes=max_bytes)


def shown_boxes(volume: Volume, answer: WholeAnswer) -> list[ShownBox]:
    """Boxes that reach their operating point, in voxel edges of the image."""
    return [ShownBox(box.name, _edges(volume, box), box.score) for box in answer.boxes if box.is_yes]


def _edges(volume: Volume, box: FoundBox) -> tuple[float, ...]:
    """Corners of a box in voxel edges; those of a volume are told in RAS+ millimetres."""
    if len(box.corners) == 4:
        return box.corners
    corners = np.array(box.corners, dtype=np.float64).reshape(1, 2, 3)
    to_voxels = np.linalg.inv(volume.affine).astype(np.float64)
    return tuple((move_boxes(corners, to_voxels) + 0.5).reshape(-1).tolist())
