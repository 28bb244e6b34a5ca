"""Damaged annotation files are read or refused by name; nothing else ever escapes."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import AnnotationKind, BoxLabel, MaskLabel
from medssl_cli.formats.labels.lidc import read_lidc
from medssl_cli.formats.labels.rtstruct import read_rtstruct
from medssl_cli.formats.labels.seg import read_seg
from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.ingest.failures import Failure
from medssl_cli.ingest.labels import ReadTask, read_annotations
from tests.unit import test_labels_coco as coco
from tests.unit import test_labels_lidc as lidc
from tests.unit import test_labels_rtstruct as rtstruct
from tests.unit import test_labels_seg as seg

NUM_MUTANTS = int(os.environ.get("MEDSSL_FUZZ_MUTANTS", "150"))
Seeded = Callable[[Path], tuple[bytes, Shape, Affine]]


def _seg(folder: Path) -> tuple[bytes, Shape, Affine]:
    path = seg.seg(folder / "seg", seg.slices_of(seg.blocks(), seg.oblique()))
    return path.read_bytes(), seg.SHAPE, seg.oblique()


def _rtstruct(folder: Path) -> tuple[bytes, Shape, Affine]:
    contours = [rtstruct.square(3.5, 4.5, 9.5, 20.5, 2), rtstruct.square(4.5, 5.5, 6.5, 7.5, 2)]
    path = rtstruct.structure_set(folder / "rt", {"Heart": contours, "Lung": contours[:1]}, rtstruct.oblique())
    return path.read_bytes(), rtstruct.SHAPE, rtstruct.oblique()


def _lidc(folder: Path) -> tuple[bytes, Shape, Affine]:
    reader = lidc.nodule(lidc.region(lidc.square(10, 20, 16, 26), -96), lidc.region([(12, 23)], -94))
    return lidc.readings(folder / "xml", reader, reader).read_bytes(), lidc.SHAPE, lidc.AFFINE


def _coco(folder: Path) -> tuple[bytes, Shape, Affine]:
    return json.dumps(coco.DOCUMENT).encode(), (100, 80, 1), np.eye(4)


def _luna(folder: Path) -> tuple[bytes, Shape, Affine]:
    return b"seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,-1,-2,3,4.5\n1.3,-5,-6,7,8\n", (30, 30, 30), np.eye(4)


def _table(folder: Path) -> tuple[bytes, Shape, Affine]:
    return b"file,age,Mass,Edema\na.png,50,1,0\nb.png,40,0.5,-1\nc.png,,,TRUE\n", (30, 30, 30), np.eye(4)


SEEDS: dict[AnnotationKind, Seeded] = {
    "seg": _seg, "rtstruct": _rtstruct, "lidc": _lidc, "coco": _coco, "luna": _luna, "table": _table,
}  # fmt: skip


def _mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, a piece cut out, repeated or copied elsewhere, or the end cut off."""
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        damaged = damaged or bytearray(1)
        start, length, target = rng.integers(0, len(damaged)), rng.integers(1, 40), rng.integers(0, len(damaged))
        piece = damaged[start : start + length]
        match rng.integers(0, 6):
            case 0 | 1:
                damaged[start] = rng.integers(256)
            case 2:
                del damaged[start : start + length]
            case 3:
                damaged[start:start] = piece
            case 4:
                damaged[target : target + len(piece)] = piece
            case 5:
                del damaged[max(start, 1) :]
    return bytes(damaged)


@pytest.mark.parametrize("kind", sorted(SEEDS))
def test_damaged_files_are_read_or_refused(tmp_path: Path, kind: AnnotationKind) -> None:
    data, shape, affine = SEEDS[kind](tmp_path)
    rng = np.random.default_rng(int(os.environ.get("MEDSSL_FUZZ_SEED", "0")))
    num_refused = 0
    path = tmp_path / "damaged"
    for _ in range(NUM_MUTANTS):
        path.write_bytes(_mutant(data, rng))
        found = read_annotations(ReadTask(path, kind))
        if isinstance(found, Failure):
            assert found.code in CODES
            num_refused += 1
            continue
        _place(kind, path, shape, affine)
    assert num_refused > 0
    assert num_refused < NUM_MUTANTS


def _place(kind: AnnotationKind, path: Path, shape: Shape, affine: Affine) -> None:
    """Put everything on the grid; only a refusal by name may stop it."""
    labels: list[MaskLabel | BoxLabel] = []
    if kind == "seg":
        labels = [read_seg(path)]
    elif kind == "rtstruct":
        labels = [read_rtstruct(path)]
    elif kind == "lidc":
        labels = list(read_lidc(path))
    else:
        found = read_annotations(ReadTask(path, kind))
        assert not isinstance(found, Failure)
        labels = [annotation.label for annotation in found.annotations if isinstance(annotation.label, BoxLabel)]
    for label in labels:
        with contextlib.suppress(InputError):
            label.to_grid(shape, affine)
