"""What the fakes of published data sets are made of: images, label maps, pictures and tables of a few kilobytes.

Every patient has a pattern of its own, so that no two count as one person. Patient 1 lies as DICOM does, patient 2 the
other way round, patient 3 obliquely, and so on; an image and its label map lie alike.
"""

import csv
import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.formats.nifti import encode_nifti, write_nifti
from medssl_cli.recipe import recipe_folder

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
BLOCK = (4, 4, 2)
"""Voxels that a label map has of each value."""


@dataclass(frozen=True)
class Wanted:
    """What one image must become.

    Args:
        patient: Whose it is: equal for images of one person, different for all others.
        modality: What the cache says.
        labels: Names of the classes of its label map.
        channel: Which image of its case it is.
        findings: What is known of it by name.
        boxes: Names of its boxes.
    """

    patient: str
    modality: str = "CT"
    labels: frozenset[str] = frozenset()
    channel: str | None = None
    findings: dict[str, float] | None = None
    boxes: tuple[str, ...] | None = None


@dataclass
class Published:
    """A fake of a data set, and what must come of it.

    Args:
        folder: What is ingested.
        recipe: Name of the shipped recipe of its task.
        options: Of `medssl ingest`, as the recipe's header says.
        settings: What shrinks the recipe for a test, beside what shrinks all of them.
        split: Options of `medssl finetune` that say who validates: the list that comes with the recipe or with the set.
        scored: Which part `medssl evaluate` scores.
        images: What must be in the cache, by place below the folder.
        codes: What becomes of files that are no images or labels, by place.
        unlabelled: Places that `medssl infer` is asked about.
        asked: Further options of `medssl infer`.
        exit_code: Of `medssl ingest`.
    """

    folder: Path
    recipe: str
    options: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    scored: str = "val"
    images: dict[str, Wanted] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    exit_code: int = 0

    def listed(self, name: str, names: Iterable[str]) -> str:
        """A list of names beside the folder, one a line."""
        path = self.folder.parent / f"{self.folder.name}-{name}.txt"
        path.write_text("\n".join(names) + "\n")
        return str(path)


def shipped_split(recipe: str) -> list[str]:
    """The list that comes with a recipe; a fake has few of its names."""
    return ["--split-file", str(recipe_folder() / "splits" / f"{recipe}.json"), "--skip-missing"]


def affine_of(patient: int, spacing: Spacing) -> NDArray[np.float64]:
    """Like DICOM's for patient 1, RAS for 2, turned by 5 degrees for 3, and so on."""
    affine = np.diag([*spacing, 1.0])
    if patient % 3 != 2:
        affine[:2, :2] *= -1
    if patient % 3 == 0:
        angle = np.deg2rad(5)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine = turn @ affine
    affine[:3, 3] = [10 + patient, -20, 30]
    return affine


def body(
    patient: int, shape: Shape, low: float = -1000, high: float = 1000, *, channel: int = 0
) -> NDArray[np.float64]:
    """A patient's own pattern between two values."""
    rng = np.random.default_rng([patient, channel])
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    size = np.array(shape)[:, None, None, None]
    pattern = rng.uniform(0.15, 0.85, (8, 8, 8))[tuple(grid * 8 // size)]
    return low + (high - low) * np.clip(pattern + rng.normal(0, 0.02, shape), 0, 1)


def scan(path: Path, patient: int, shape: Shape, spacing: Spacing, low: float = -1000, dtype: Any = np.int16) -> None:
    """One image of a patient."""
    write(path, body(patient, shape, low, 1000).astype(dtype), patient, spacing)


def labels(
    path: Path, patient: int, shape: Shape, spacing: Spacing, values: Sequence[int], dtype: Any = np.uint8
) -> None:
    """A label map with a block of 32 voxels of each value."""
    write(path, blocks(shape, values).astype(dtype), patient, spacing)


def blocks(shape: Shape, values: Sequence[int]) -> NDArray[np.int64]:
    """Blocks of voxels side by side, one of each value."""
    voxels = np.zeros(shape, np.int64)
    across, down = (size // step - 1 for size, step in zip(shape[:2], BLOCK[:2], strict=True))
    for index, value in enumerate(values):
        x, y, z = index % across, index // across % down, index // (across * down)
        start = (2 + BLOCK[0] * x, 2 + BLOCK[1] * y, 2 + BLOCK[2] * z)
        place = tuple(slice(first, first + size) for first, size in zip(start, BLOCK, strict=True))
        assert voxels[place].shape == BLOCK, "more values than there is room for"
        voxels[place] = value
    return voxels


def volumes(path: Path, images: Sequence[NDArray[np.generic]], patient: int, spacing: Spacing) -> None:
    """One 4D file, packed as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytearray(encode_nifti(images[0], affine_of(patient, spacing))[:352])
    header[40:56] = np.array([4, *images[0].shape, len(images), 1, 1, 1], "<i2").tobytes()
    data = bytes(header) + b"".join(image.tobytes(order="F") for image in images)
    path.write_bytes(gzip.compress(data, compresslevel=1) if path.suffix == ".gz" else data)


def write(path: Path, voxels: NDArray[np.generic], patient: int, spacing: Spacing) -> None:
    """One 3D file, where the patient lies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, voxels, affine_of(patient, spacing))


def document(path: Path, content: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def table(path: Path, rows: Iterable[Sequence[object]], *, delimiter: str = ",", encoding: str = "utf-8") -> None:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)


def picture(path: Path, pixels: NDArray[np.generic]) -> None:
    """A picture `[Y, X]` in grey, or `[Y, X, 3]` and `[Y, X, 4]` in colours, of the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
