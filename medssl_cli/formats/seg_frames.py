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
    for number, place, mask in _placed_frames(data, affine, shape):
        if labels[place][mask].any():
            raise _misplaced()
        labels[place][mask] = number
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
    for number, place, mask in _placed_frames(data, affine, shape[1:]):
        if not 1 <= number <= len(masks):
            raise _misplaced()
        masks[number - 1][place][mask] = 1
    return masks


Place = tuple[slice | int, ...]
"""A part of a plane of the grid: slices along two of X, Y and Z, which may run backwards, and an index of the third."""


def _placed_frames(
    data: bytes, affine: Affine, shape: tuple[int, int, int]
) -> Iterator[tuple[int, Place, NDArray[np.bool_]]]:
    """Segment number, place and mask there of every frame that is not empty; of a label map, of every segment in it."""
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(data))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    to_index = np.linalg.inv(LPS_TO_RAS @ affine)
    is_label_map = dataset.SegmentationType == "LABELMAP"
    frames = _numbered_frames(dataset) if is_label_map else _unpacked_frames(dataset)
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        rows, columns = (np.flatnonzero(frame.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            continue
        box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        place, is_turned = _place(to_index @ _frame_affine(shared, groups), *box, shape)
        pixels = frame[box] if is_turned else frame[box].T
        if not is_label_map:
            segment = _macro("SegmentIdentificationSequence", shared, groups)
            yield int(segment.ReferencedSegmentNumber), place, pixels != 0
            continue
        for number in np.flatnonzero(np.bincount(pixels.ravel())).tolist():
            if number:
                yield number, place, pixels == number


def _place(to_index: Affine, rows: slice, columns: slice, shape: tuple[int, int, int]) -> tuple[Place, bool]:
    """Where a box of a frame lies on a grid, and whether the frame's rows run along the earlier axis of its two.

    Args:
        to_index: (column, row, 0, 1) of the frame to an index of the grid.
        rows: Rows of the box.
        columns: Its columns.
        shape: Size of the grid.

    Raises:
        GateError: `E_OUTPUT_CHECK` if any corner of the box does not lie on a voxel of the grid.
    """
    corners = np.array([(x, y, 0, 1) for x in (columns.start, columns.stop - 1) for y in (rows.start, rows.stop - 1)])
    exact = (to_index @ corners.T)[:3]
    voxels, steps = np.rint(exact).astype(int), np.rint(to_index[:3, :2]).astype(int)
    axis_of_column, axis_of_row = np.abs(steps).argmax(axis=0).tolist()
    is_along_axes = axis_of_column != axis_of_row and (np.abs(steps).sum(axis=0) == 1).all()
    is_inside = ((voxels >= 0) & (voxels < np.array(shape)[:, np.newaxis])).all()
    if not is_along_axes or not is_inside or np.abs(exact - voxels).max() > MAX_INDEX_ERROR:
        raise _misplaced()
    place: list[slice | int] = voxels[:, 0].tolist()
    for axis, step in ((axis_of_column, steps[axis_of_column, 0]), (axis_of_row, steps[axis_of_row, 1])):
        behind = int(voxels[axis, -1] + step)
        place[axis] = slice(int(voxels[axis, 0]), behind if behind >= 0 else None, int(step))
    return tuple(place), axis_of_row < axis_of_column


def _misplaced() -> GateError:
    return GateError("E_OUTPUT_CHECK", "a frame of the segmentation does not lie on the grid of the series")


def _unpacked_frames(dataset: Any) -> Iterator[NDArray[np.uint8]]:
    """`[rows, columns]` of 1-bit pixels, least significant bit first (PS3.5 section 8.1.1), frame after frame."""
    shape = int(dataset.Rows), int(dataset.Columns)
    num_bits, packed = shape[0] * shape[1], np.frombuffer(dataset.PixelData, dtype=np.uint8)
    for first in range(0, int(dataset.NumberOfFrames) * num_bits, num_bits):
        start, skipped = divmod(first, 8)
        bits = np.unpackbits(packed[start : (first + num_bits + 7) // 8], bitorder="little")
        yield bits[skipped : skipped + num_bits].reshape(shape)


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
