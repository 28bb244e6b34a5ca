"""Boxes of volumes in the patient, and the table of them that LUNA16 takes.

Boxes are in RAS+ millimetres. The table is in LPS+ millimetres, as LUNA16's own tables and all of DICOM: there x and y
have the other sign.

Shapes: M boxes.
"""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.deploy.results import ScanResult
from medssl_cli.formats.predictions import CANDIDATES_START
from medssl_cli.formats.table import stem_of
from medssl_cli.imaging.geometry import Affine, Shape, spacing_mm

CANDIDATES: Final = "candidates"
"""How a report calls boxes of a volume."""
UNITS: Final = "LPS mm"
_COLUMNS: Final = ("class", "diameter_mm", "threshold", "is_yes", "name", "units")


def boxes_in_patient(
    edges: NDArray[np.float64], shape: Shape, affine: Affine
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes of a volume in the patient.

    Args:
        edges: Boxes in voxel edges, `[M, 6]`; voxel i covers [i, i + 1]. They end at the volume.
        shape: Size of the volume.
        affine: Affine of the volume.

    Returns:
        Low and high corners of the upright box around each box in RAS+ millimetres, `[M, 6]`, in the middle of
        which its own centre lies; and the mean of its sides in millimetres, `[M]`.
    """
    inside = edges.clip(0, np.tile(shape, 2))
    sides = inside[:, 3:] - inside[:, :3]
    centres = ((inside[:, :3] + inside[:, 3:]) / 2 - 0.5) @ affine[:3, :3].T + affine[:3, 3]
    halves = sides / 2 @ np.abs(affine[:3, :3]).T
    return np.concatenate([centres - halves, centres + halves], axis=1), (sides * spacing_mm(affine)).mean(axis=1)


def candidate_rows(entries: Sequence[ScanResult]) -> list[Sequence[object]]:
    """One row per box, under the columns of LUNA16 and then others.

    A scan is called by its SeriesInstanceUID, or as a file without its suffix, which in LUNA16 is the same.

    Args:
        entries: Entries of models that answer with boxes of volumes.
    """
    rows: list[Sequence[object]] = [(*CANDIDATES_START, *_COLUMNS)]
    for entry in entries:
        series = entry.series or stem_of(PurePath(entry.path).name)
        for box in entry.boxes:
            low, high = np.array(box["corners"][:3]), np.array(box["corners"][3:])
            x, y, z = (low + high) / 2 * (-1, -1, 1)
            threshold = entry.thresholds.get(box["class"], 1.0)
            told = (
                box["class"],
                f"{box['diameter_mm']:.3f}",
                f"{threshold:.6f}",
                int(box["is_yes"]),
                entry.name,
                UNITS,
            )
            rows.append((series, f"{x:.4f}", f"{y:.4f}", f"{z:.4f}", f"{box['score']:.6f}", entry.task, *told))
    return rows
