"""Probabilities on the scan's own grid: those of the interpolated logits, wherever the scan lies."""

import errno
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from medssl_cli.base.classes import Activation
from medssl_cli.base.errors import GateError, InputError, StorageError
from medssl_cli.deploy import probability_file
from medssl_cli.deploy.probability_file import ProbabilityFile
from medssl_cli.formats.loaded import Identity, LoadedImage
from medssl_cli.formats.nifti import encode_nifti
from medssl_cli.formats.predictions import is_prediction
from medssl_cli.imaging.geometry import Shape
from medssl_cli.imaging.kept_probabilities import STEPS, ProbabilityWriter
from medssl_cli.imaging.memory import volume_memory
from medssl_cli.imaging.restoring import RestoredLabels, RestoredMasks
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing
from tests.unit.test_restoring import (
    ORIENTATIONS,
    SHAPE,
    add_in_slabs,
    in_ras,
    interpolated,
    logits_for,
    placement_for,
    stored_affine,
)

CLOSE = 0.5 + 0.01
"""Steps: half of one is lost by rounding, and a little by single precision."""
AFFINE = stored_affine((1, 2, 0), (-1, 1, -1), (0.7, 0.9, 2.0))


class PlanesInMemory:
    """Probabilities in an array."""

    def begin(self, count: int, shape: Shape, slowest: int) -> NDArray[np.uint8]:
        self.slowest, self.settled = slowest, 0
        self.images = np.zeros((count, *shape), np.uint8)
        return self.images

    def settle(self) -> None:
        self.settled += 1


def meaning(logits: NDArray[np.floating[Any]], activation: Activation) -> NDArray[np.float64]:
    """Probabilities of logits `[K, ...]` by their definitions; without the background where there is one."""
    whole = logits.astype(np.float64)
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-whole))
    powers = np.exp(whole)
    found: NDArray[np.float64] = (powers / powers.sum(axis=0))[1:]
    return found


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("along", [0, 2])
def test_they_are_those_of_the_interpolated_logits_in_any_orientation(activation: Activation, along: int) -> None:
    for number, (order, signs) in enumerate(ORIENTATIONS[along::3]):
        placement = placement_for(stored_affine(order, signs, (0.7, 0.7, 3.0)))
        logits = logits_for(placement, seed=number)
        restored = (RestoredLabels if activation == "softmax" else RestoredMasks)(
            placement, *(() if activation == "softmax" else (4,)), along=along
        )  # fmt: skip
        planes = PlanesInMemory()
        restored.beside = ProbabilityWriter(restored, planes, activation, len(logits)).write

        add_in_slabs(restored, logits, along, [2, 3])

        expected = STEPS * meaning(interpolated(logits, placement), activation)
        found = in_ras(planes.images, placement)
        np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=0)
        assert planes.images.shape[1:] == SHAPE
        assert placement.source_affine[along, planes.slowest] != 0


def image(header: bytes | None = None) -> LoadedImage:
    return LoadedImage(
        Volume(np.zeros((1, *SHAPE), np.int16), AFFINE), Identity(None, "", ""), "nifti", nifti_header=header
    )


def filled(path: Path, slowest: int = 2, count: int = 3) -> tuple[ProbabilityFile, NDArray[np.uint8]]:
    values = np.random.default_rng(0).integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    file = ProbabilityFile(path)
    file.begin(count, SHAPE, slowest)[...] = values
    file.settle()
    return file, values


@pytest.mark.parametrize("slowest", [0, 1, 2])
def test_the_file_is_a_series_of_images_from_0_to_1_where_the_scan_lies(tmp_path: Path, slowest: int) -> None:
    path = tmp_path / "new" / "p.nii.gz"
    file, values = filled(path, slowest)

    file.publish(image(), overwrite=False)

    found = nib.load(path)
    assert found.shape == (*SHAPE, 3)
    np.testing.assert_allclose(found.get_fdata(), np.moveaxis(values, 0, -1) / STEPS, atol=1e-6)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-4)
    assert is_prediction(path.read_bytes()[:4096])
    assert [one.name for one in path.parent.iterdir()] == ["p.nii.gz"]


def test_one_class_is_one_image_and_the_header_of_the_scan_is_kept(tmp_path: Path) -> None:
    scan = nib.Nifti1Image.from_bytes(encode_nifti(np.zeros(SHAPE, np.int16), AFFINE))
    scan.set_sform(scan.affine, code=4)
    file, _ = filled(tmp_path / "p.nii.gz", count=1)

    file.publish(image(scan.to_bytes()[:348]), overwrite=False)

    found = nib.load(tmp_path / "p.nii.gz")
    assert (found.shape, int(found.header["sform_code"])) == (SHAPE, 4)


def test_a_file_of_another_content_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "p.nii.gz"
    file, _ = filled(path)
    file.publish(image(), overwrite=False)
    same, first = path.read_bytes(), path.read_bytes()
    file.publish(image(), overwrite=False)
    other, _ = filled(path, count=2)

    with pytest.raises(InputError, match="E_OUTPUT_EXISTS"):
        other.publish(image(), overwrite=False)

    assert path.read_bytes() == first == same
    other.publish(image(), overwrite=True)
    assert nib.load(path).shape == (*SHAPE, 2)


def test_a_file_that_does_not_read_back_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = filled(tmp_path / "p.nii.gz")
    pack = probability_file.gzip_pieces
    monkeypatch.setattr(probability_file, "gzip_pieces", lambda pieces, **more: pack([*pieces][:-1], **more))

    with pytest.raises(GateError, match="E_OUTPUT_CHECK"):
        file.publish(image(), overwrite=False)

    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(probability_file.os, "posix_fallocate", full, raising=False)

    with pytest.raises(StorageError, match=r"E_NO_SPACE.*1 MiB"):
        filled(tmp_path / "p.nii.gz")

    assert not list(tmp_path.iterdir())


def test_the_plan_counts_a_slab_of_them_and_not_the_whole() -> None:
    sizes = {"preprocessing": Preprocessing(window_hu=(0, 1), spacing_mm=(1.0, 1.0, 1.0)), "tile": (64, 64, 64)}
    plans = [
        volume_memory((512, 512, 400), np.eye(4), overlap=0.5, num_outputs=9, has_probabilities=wanted, **sizes)  # type: ignore[arg-type]
        for wanted in (False, True)
    ]

    whole = 512 * 512 * 400 * 9
    assert plans[1].total - plans[0].total == plans[1].probabilities
    assert whole * 65 / 512 < plans[1].probabilities < whole * 65 / 512 + 9 * 2**20 + 1
