"""Images with a reference and a prediction, small enough to lie in a page, and the slice viewer that shows them.

The page holds the voxels themselves, for a page opened from a file may not fetch others. `viewer.js` draws them.
"""

import base64
import functools
import hashlib
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import reorient_to_ras, spacing_mm
from medssl_cli.imaging.volume import Volume
from medssl_cli.report import structure_colours
from medssl_cli.report.pictures import SMALLEST_RANGE, automatic_window, box_around

MAX_BYTES: Final = 100_000
"""Size of an image with both label maps, compressed: 20 of them take 2.7 MB of a page."""
MAX_VOXELS_PER_BYTE: Final = 8
"""More voxels than this for every byte are not even tried."""
WIDEST_PERCENTILES: Final = (0.1, 99.9)


@dataclass(frozen=True)
class Scene:
    """An image with a reference and a prediction in RAS order, as the viewer takes them.

    Args:
        shape: (X, Y, Z) voxels.
        spacing_mm: Between their centres.
        range: Intensities of the grey values 0 and 255.
        window: Intensities shown as black and white at first.
        units: Units of intensities.
        start: Voxel that the planes go through at first.
        strides: How far apart the voxels that are kept lay in the image, along each axis.
        values: Label values that either label map holds.
        packed: Grey values, reference and prediction, `[3, X, Y, Z]` bytes, compressed by zlib.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    range: tuple[float, float]
    window: tuple[float, float]
    units: str
    start: tuple[int, int, int]
    strides: tuple[int, int, int]
    values: tuple[int, ...]
    packed: bytes


def scene_of(
    image: Volume,
    prediction: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    *,
    window: tuple[float, float] | None = None,
    margin_mm: float,
    max_bytes: int = MAX_BYTES,
) -> Scene:
    """An image around its structures; of one that is too large every second, third... voxel.

    Args:
        image: Its first channel is shown.
        prediction: Label map `[X, Y, Z]` on its grid.
        reference: Label map `[X, Y, Z]` on its grid.
        window: Intensities shown as black and white at first; by default the 1st and 99.5th percentile.
        margin_mm: How much is kept around the structures; without any structure all of the image is.
        max_bytes: Most that the compressed voxels take.
    """
    voxels, affine = reorient_to_ras(image.voxels[:1], image.affine)
    labels = [reorient_to_ras(mask[np.newaxis], image.affine)[0][0] for mask in (reference, prediction)]
    spacing = spacing_mm(affine)
    box = box_around((labels[0] > 0) | (labels[1] > 0), spacing, margin_mm)
    cut, labels = voxels[0][box].astype(np.float32), [mask[box] for mask in labels]
    window = window or automatic_window(voxels)
    finite = cut[np.isfinite(cut)]
    ends = np.percentile(finite, WIDEST_PERCENTILES).tolist() if finite.size else window
    low, high = min(ends[0], window[0]), max(ends[1], window[1], window[0] + SMALLEST_RANGE)
    grey = np.rint(np.clip((np.nan_to_num(cut, nan=low) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    layers = np.stack([grey, *labels]).astype(np.uint8)
    strides, packed = _packed(layers, spacing, max_bytes)
    kept = layers[:, :: strides[0], :: strides[1], :: strides[2]]
    return Scene(
        shape=kept.shape[1:],
        spacing_mm=spacing_mm(affine @ np.diag([*strides, 1.0])),
        range=(low, high),
        window=window,
        units=image.units if image.units == "HU" else "",
        start=_start(np.maximum(kept[1], kept[2]) > 0),
        strides=strides,
        values=tuple(np.unique(kept[1:]).tolist()),
        packed=packed,
    )


def viewer_block(scenes: Sequence[tuple[str, Scene]], classes: Mapping[int, str]) -> str:
    """HTML that `viewer.js` turns into a viewer; without it, a line that says so.

    Args:
        scenes: Titles and images.
        classes: Names by label value.
    """
    present = {value for _, scene in scenes for value in scene.values}
    colours = structure_colours({*classes, *present})
    document = {
        "classes": [
            {"value": value, "name": classes.get(value, str(value)), "colour": colour}
            for value, colour in colours.items()
        ],
        "images": [
            {
                "title": title,
                "shape": scene.shape,
                "spacing": scene.spacing_mm,
                "range": scene.range,
                "window": scene.window,
                "units": scene.units,
                "start": scene.start,
                "voxels": base64.b64encode(scene.packed).decode("ascii"),
            }
            for title, scene in scenes
        ],
    }
    text = html.escape(json.dumps(document, allow_nan=False), quote=True)
    return f'<div class="viewer" data-scene="{text}">The slice viewer needs JavaScript and a browser of 2023.</div>'


@functools.cache
def script() -> str:
    """The viewer's JavaScript."""
    return Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")


def script_digest() -> str:
    """SHA-256 of the script as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script().encode("utf-8")).digest()).decode("ascii")


def _packed(layers: NDArray[np.uint8], spacing: Sequence[float], max_bytes: int) -> tuple[tuple[int, int, int], bytes]:
    """Strides along each axis, the finest that fit and leave voxels nearly cubes, and the voxels, compressed."""
    strides = [1, 1, 1]
    while True:
        kept = layers[:, :: strides[0], :: strides[1], :: strides[2]]
        if kept[0].size <= max(MAX_VOXELS_PER_BYTE * max_bytes, 1):
            packed = zlib.compress(np.ascontiguousarray(kept).tobytes(), 6)
            if len(packed) <= max_bytes or kept[0].size == 1:
                return (strides[0], strides[1], strides[2]), packed
        thick = [axis for axis in range(3) if kept.shape[1 + axis] > 1]
        strides[min(thick, key=lambda axis: spacing[axis] * strides[axis])] += 1


def _start(is_structure: NDArray[np.bool_]) -> tuple[int, int, int]:
    """On each axis the plane that shows most structure; without any, the middle."""
    counts = [is_structure.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    start = [int(count.argmax()) if count.any() else len(count) // 2 for count in counts]
    return start[0], start[1], start[2]
