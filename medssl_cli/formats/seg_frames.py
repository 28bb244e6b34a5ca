"""Frames of a DICOM SEG, placed on a grid by what each says about itself.

The check of the writer, written apart from it and without its library.
"""

import io
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import GateError
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.imaging.geometry import Affine

MAX_INDEX_ERROR: Final = 0.06
"""Voxels by which a frame may lie beside the label map's grid: what the gate of a series allows, and rounding."""


def read_segmentation(data: bytes, affine: Affine, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Place the frames of a SEG on a grid by their own positions, without highdicom.

    Args:
        data: A DICOM file.
        affine: Affine of the wanted grid, to RAS+ millimetres.
        shape: Its size (X, Y, Z).

    Returns:
        `[X, Y, Z]` label map; the segment number is the label.

    Raises:
        GateError: `E_OUTPUT_CHECK` if a frame does not lie on voxels of the grid, or segments overlap.
    """
    labels = np.zeros(shape, dtype=np.uint8)
    for number, voxels in _placed_frames(data, affine, shape):
        if labels[voxels].any():
            raise _misplaced()
        labels[voxels] = number
    return labels


def read_masks(data: bytes, affine: Affine, shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """The same for segments that may overlap.

    Args:
        data: A DICOM file.
        affine: Affine of the wanted grid, to RAS+ millimetres.
        shape: Number of masks K, and size (X, Y, Z) of the grid.

    Returns:
        `[K, X, Y, Z]` of 0 and 1; segment k is the k-th mask, from 1 on.

    Raises:
        GateError: `E_OUTPUT_CHECK` if a frame does not lie on voxels of the grid, or is of another segment.
    """
    masks = np.zeros(shape, dtype=np.uint8)
    for number, voxels in _placed_frames(data, affine, shape[1:]):
        if not 1 <= number <= len(masks):
            raise _misplaced()
        masks[number - 1][voxels] = 1
    return masks


Voxels = tuple[NDArray[np.int64], ...]
"""Indices along X, Y and Z."""


def _placed_frames(data: bytes, affine: Affine, shape: tuple[int, int, int]) -> Iterator[tuple[int, Voxels]]:
    """Segment number and voxels of every frame that is not empty; of a label map, of every segment in it."""
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(data))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    to_index = np.linalg.inv(LPS_TO_RAS @ affine)
    is_label_map = dataset.SegmentationType == "LABELMAP"
    frames = _numbered_frames(dataset) if is_label_map else _unpacked_frames(dataset)
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if not frame.any():
            continue
        rows, columns = np.nonzero(frame)
        points = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)]).astype(np.float64)
        indices = (to_index @ _frame_affine(shared, groups) @ points)[:3]
        voxels = np.rint(indices).astype(int)
        is_inside = ((voxels >= 0) & (voxels < np.array(shape)[:, None])).all()
        if not is_inside or np.abs(indices - voxels).max() > MAX_INDEX_ERROR:
            raise _misplaced()
        if not is_label_map:
            yield int(_macro("SegmentIdentificationSequence", shared, groups).ReferencedSegmentNumber), tuple(voxels)
            continue
        numbers = frame[rows, columns]
        for number in np.unique(numbers).tolist():
            yield number, tuple(voxels[:, numbers == number])


def _misplaced() -> GateError:
    return GateError("E_OUTPUT_CHECK", "a frame of the segmentation does not lie on the grid of the series")


def _unpacked_frames(dataset: Any) -> NDArray[np.uint8]:
    """`[frames, rows, columns]` of 1-bit pixels, least significant bit first (PS3.5 section 8.1.1)."""
    count = int(dataset.NumberOfFrames) * int(dataset.Rows) * int(dataset.Columns)
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, dtype=np.uint8), bitorder="little")
    return bits[:count].reshape(int(dataset.NumberOfFrames), int(dataset.Rows), int(dataset.Columns))


def _numbered_frames(dataset: Any) -> Iterator[NDArray[np.uint8]]:
    """`[rows, columns]` of a label map, one frame after the other, unpacked if they are packed."""
    from pydicom.pixels import iter_pixels

    return iter_pixels(dataset, raw=True)


def _frame_affine(shared: Any, groups: Any) -> Affine:
    """(column, row, 0, 1) of a frame to LPS millimetres: PS3.3 equation C.7.6.2.1-1."""
    measures = _macro("PixelMeasuresSequence", shared, groups)
    orientation = _macro("PlaneOrientationSequence", shared, groups)
    position = _macro("PlanePositionSequence", shared, groups)
    cosines = np.array(orientation.ImageOrientationPatient, dtype=np.float64)
    row_spacing, column_spacing = (float(value) for value in measures.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * column_spacing
    affine[:3, 1] = cosines[3:] * row_spacing
    affine[:3, 3] = np.array(position.ImagePositionPatient, dtype=np.float64)
    return affine


def _macro(name: str, shared: Any, groups: Any) -> Any:
    """What equals in all frames is stated once for all of them."""
    return (shared if name in shared else groups)[name][0]
