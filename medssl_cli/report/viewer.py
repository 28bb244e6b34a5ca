"""Images with what is known and what a model says of them, small enough to lie in a page, and their slice viewer.

The page holds the voxels themselves, for a page opened from a file may not fetch others. `viewer.js` draws them.
"""

import base64
import functools
import hashlib
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, reorient_to_ras, spacing_mm
from medssl_cli.imaging.volume import Volume
from medssl_cli.report import Colour, structure_colours
from medssl_cli.report.boxes import ShownBox, edges_on, is_picture
from medssl_cli.report.pictures import SMALLEST_RANGE, automatic_window, box_around

MAX_BYTES: Final = 100_000
"""Size of an image with both label maps, compressed: 20 of them take 2.7 MB of a page."""
MAX_VOXELS_PER_BYTE: Final = 8
"""More voxels than this for every byte are not even tried."""
WIDEST_PERCENTILES: Final = (0.1, 99.9)
MOST_BOXES: Final = 50
"""Boxes of an image that a page holds, the first ones."""
Shows = Literal["both", "model", "nothing"]
"""What lies over images: a reference and a model, a model alone, or nothing."""


@dataclass(frozen=True)
class SceneBox:
    """A box in the voxel edges of a scene.

    Args:
        name: Name of its class.
        text: What is written beside it.
        low: Its low corner.
        high: Its high corner.
        is_reference: It is there; else a model found it.
    """

    name: str
    text: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    is_reference: bool


@dataclass(frozen=True)
class Scene:
    """An image with a reference and a prediction in RAS order, as the viewer takes them.

    A picture without a place in the patient runs to the left and upwards, so that it is seen as it is stored.

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
        boxes: Boxes that are there, and boxes that were found.
        is_picture: It has no place in the patient, so that no side of it has a name.
        notes: Lines of text about it.
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
    boxes: tuple[SceneBox, ...] = ()
    is_picture: bool = False
    notes: tuple[str, ...] = ()


def scene_of(
    image: Volume,
    prediction: NDArray[np.uint8] | None = None,
    reference: NDArray[np.uint8] | None = None,
    *,
    boxes: Sequence[ShownBox] = (),
    window: tuple[float, float] | None = None,
    margin_mm: float | None,
    max_bytes: int = MAX_BYTES,
) -> Scene:
    """An image around its structures and boxes; of one that is too large every second, third... voxel.

    Args:
        image: Its first channel is shown.
        prediction: Label map `[X, Y, Z]` on its grid, if there is one.
        reference: Label map `[X, Y, Z]` on its grid, if there is one.
        boxes: Boxes on it, in its voxel edges.
        window: Intensities shown as black and white at first; by default the 1st and 99.5th percentile.
        margin_mm: How much is kept around structures and boxes; without any, or None, all of the image is.
        max_bytes: Most that the compressed voxels take.
    """
    voxels, affine = _seen(image.voxels[:1], image)
    maps = [None if mask is None else _seen(mask[np.newaxis], image)[0][0] for mask in (reference, prediction)]
    edges = edges_on(affine, image, boxes[:MOST_BOXES])
    spacing, window = spacing_mm(affine), window or automatic_window(voxels)
    cut = box_around(_marked(voxels.shape[1:], maps, edges), spacing, None if is_picture(image) else margin_mm)
    layers = _Layers(voxels[0][cut], [None if mask is None else mask[cut] for mask in maps], window)
    strides, packed = layers.packed(spacing, max_bytes)
    kept = layers.labels(strides)
    shown = _scene_boxes(boxes[:MOST_BOXES], edges - [part.start for part in cut], strides)
    return Scene(
        shape=kept.shape[1:],
        spacing_mm=spacing_mm(affine @ np.diag([*strides, 1.0])),
        range=layers.range,
        window=window,
        units=image.units if image.units == "HU" else "",
        start=_start(kept.max(axis=0) > 0, shown),
        strides=strides,
        values=tuple(np.unique(kept).tolist()),
        packed=packed,
        boxes=shown,
        is_picture=is_picture(image),
    )


def viewer_block(
    scenes: Sequence[tuple[str, Scene]],
    classes: Mapping[int, str],
    *,
    shows: Shows = "both",
    colours: Mapping[int, Colour] | None = None,
) -> str:
    """HTML that `viewer.js` turns into a viewer; without it, a line that says so.

    Args:
        scenes: Titles and images.
        classes: Names by label value; of boxes by any number, which chooses the colour.
        shows: What lies over the images.
        colours: Colours of classes, instead of those of the palette.
    """
    present = {value for _, scene in scenes for value in scene.values}
    palette = {**structure_colours({*classes, *present}), **(colours or {})}
    document = {
        "shows": shows,
        "classes": [
            {"value": value, "name": classes.get(value, str(value)), "colour": colour}
            for value, colour in palette.items()
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
                "boxes": [asdict(box) for box in scene.boxes],
                "isPicture": scene.is_picture,
                "hasLabels": bool(max(scene.values)),
                "notes": scene.notes,
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


class _Layers:
    """The voxels of a scene before they are thinned out.

    Args:
        voxels: `[X, Y, Z]`.
        maps: Reference and prediction, or None.
        window: Intensities shown as black and white at first.
    """

    def __init__(
        self, voxels: NDArray[np.generic], maps: Sequence[NDArray[np.uint8] | None], window: tuple[float, float]
    ) -> None:
        self._voxels, self._maps, self._window = voxels, maps, window
        self.range = window

    def packed(self, spacing: Sequence[float], max_bytes: int) -> tuple[tuple[int, int, int], bytes]:
        """Strides along each axis, the finest that fit and leave voxels nearly cubes, and the voxels, compressed."""
        strides, is_first = [1, 1, 1], True
        while True:
            kept = self._kept(self._voxels, strides)
            if kept.size <= max(MAX_VOXELS_PER_BYTE * max_bytes, 1):
                if is_first:
                    self.range, is_first = _range(kept, self._window), False
                layers = np.concatenate([self._grey(kept)[np.newaxis], self.labels(strides)])
                packed = zlib.compress(layers.tobytes(), 6)
                if len(packed) <= max_bytes or kept.size == 1:
                    return (strides[0], strides[1], strides[2]), packed
            thick = [axis for axis in range(3) if kept.shape[axis] > 1]
            strides[min(thick, key=lambda axis: spacing[axis] * strides[axis])] += 1

    def labels(self, strides: Sequence[int]) -> NDArray[np.uint8]:
        """Reference and prediction `[2, X, Y, Z]`; zeros for one that there is not."""
        shape = self._kept(self._voxels, strides).shape
        nothing = np.zeros(shape, dtype=np.uint8)
        maps = [nothing if mask is None else self._kept(mask, strides) for mask in self._maps]
        return np.stack(maps).astype(np.uint8, copy=False)

    def _grey(self, kept: NDArray[np.generic]) -> NDArray[np.uint8]:
        low, high = self.range
        values = np.nan_to_num(kept.astype(np.float32), nan=low)
        grey: NDArray[np.uint8] = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        return grey

    @staticmethod
    def _kept(voxels: NDArray[Any], strides: Sequence[int]) -> NDArray[Any]:
        return voxels[:: strides[0], :: strides[1], :: strides[2]]


def _range(voxels: NDArray[np.generic], window: tuple[float, float]) -> tuple[float, float]:
    """Intensities of the grey values 0 and 255."""
    finite = voxels[np.isfinite(voxels)].astype(np.float32)
    ends = np.percentile(finite, WIDEST_PERCENTILES).tolist() if finite.size else window
    low = min(ends[0], window[0])
    return low, max(ends[1], window[1], window[0] + SMALLEST_RANGE)


def _seen(voxels: NDArray[Any], image: Volume) -> tuple[NDArray[Any], Affine]:
    """Voxels `[C, X, Y, Z]` of an image's grid in RAS order; of a picture, see `Scene`."""
    if not is_picture(image):
        return reorient_to_ras(voxels, image.affine)
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    turn[:2, 3] = voxels.shape[1] - 1, voxels.shape[2] - 1
    return voxels[:, ::-1, ::-1], image.affine @ turn


def _marked(
    shape: tuple[int, ...], maps: Sequence[NDArray[np.uint8] | None], edges: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Voxels of structures and of boxes."""
    marked = np.zeros(shape, dtype=bool)
    for mask in maps:
        if mask is not None:
            marked |= mask > 0
    for low, high in edges:
        first, last = np.floor(low).astype(int).clip(0), np.ceil(high).astype(int).clip(0)
        marked[first[0] : last[0], first[1] : last[1], first[2] : last[2]] = True
    return marked


def _scene_boxes(
    boxes: Sequence[ShownBox], edges: NDArray[np.float64], strides: tuple[int, int, int]
) -> tuple[SceneBox, ...]:
    """Boxes in the voxel edges of what is left: the middle of a voxel that is kept stays its middle."""
    scaled = ((edges - 0.5) / strides + 0.5).round(3).tolist()
    return tuple(
        SceneBox(box.name, box.text, tuple(low), tuple(high), box.score is None)
        for box, (low, high) in zip(boxes, scaled, strict=True)
    )


def _start(is_structure: NDArray[np.bool_], boxes: Sequence[SceneBox]) -> tuple[int, int, int]:
    """On each axis the plane that shows most structure, else the middle of the first box, else of the image."""
    if boxes and not is_structure.any():
        middles = [(low + high) / 2 for low, high in zip(boxes[0].low, boxes[0].high, strict=True)]
        start = [min(max(int(middle), 0), size - 1) for middle, size in zip(middles, is_structure.shape, strict=True)]
        return start[0], start[1], start[2]
    counts = [is_structure.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    start = [int(count.argmax()) if count.any() else len(count) // 2 for count in counts]
    return start[0], start[1], start[2]
