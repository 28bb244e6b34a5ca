"""A batch of scans with known masks, some of them broken, each in another way with a known code."""

import gzip
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.formats.dicom import write_ct_series
from medssl_cli.formats.nifti import encode_nifti, write_nifti
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import edit

AFFINE = np.array([[-0.9, 0, 0, 12], [0, 0.7, 0, -30], [0, 0, 2.5, 5], [0, 0, 0, 1]], dtype=np.float64)
SHAPE = (20, 18, 10)
INSIDE_HU = 200
OUTSIDE_HU = -1000


def phantom(number: int = 0, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int16]:
    """Air with a warm block off the centre, another one for each number; the toy model marks what is above 50 HU."""
    voxels = np.full(shape, OUTSIDE_HU, np.int16)
    x, y = number % 5, number // 5 % 5
    voxels[2 + x : 7 + x, 3 + y : 11 + y, 1:4] = INSIDE_HU
    return voxels


def write_series(folder: Path, number: int, voxels: NDArray[np.int16] | None = None) -> list[Path]:
    """A CT series of its own patient, study and series."""
    return write_ct_series(
        folder,
        Volume((phantom(number) if voxels is None else voxels)[None], AFFINE, "CT", "HU"),
        patient_id=f"P{number}",
        patient_name="Phantom^Test",
        study_uid=f"1.2.3.{number}",
        series_uid=f"1.2.3.{number}.1",
        frame_of_reference_uid=f"1.2.9.{number}",
        series_description=f"phantom {number}",
        file_names=[f"{number}-{k}.dcm" for k in range(SHAPE[2] if voxels is None else voxels.shape[2])],
    )


@dataclass
class Batch:
    """A folder of scans, and what must become of it.

    Args:
        masks: Voxels of the mask by the path of the scan below the folder (of a series, by its folder).
        codes: Code of each refusal by that path.
    """

    folder: Path
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)


def _truncated(path: Path) -> None:
    whole = gzip.compress(encode_nifti(phantom(), AFFINE))
    path.with_suffix(".nii.gz").write_bytes(whole[: len(whole) // 2])


def _damaged(path: Path) -> None:
    data = bytearray(gzip.compress(encode_nifti(phantom(), AFFINE)))
    data[-5] ^= 1
    path.with_suffix(".nii.gz").write_bytes(data)


def _four_dimensional(path: Path) -> None:
    image = sitk.JoinSeries([sitk.GetImageFromArray(phantom().T.copy())] * 2)
    sitk.WriteImage(image, str(path.with_suffix(".nii.gz")))


def _not_finite(path: Path) -> None:
    voxels = phantom().astype(np.float32)
    voxels[0, 0, 0] = np.nan
    path.with_suffix(".nii").write_bytes(encode_nifti(voxels, AFFINE))


def _sheared(path: Path) -> None:
    data = bytearray(encode_nifti(phantom(), AFFINE))
    data[252:254] = bytes(2)  # no quaternion, which could not say it
    turned = 0.7 * np.array([np.sin(0.2), np.cos(0.2)], np.float32)  # the second axis, of the same length
    data[284:288], data[300:304] = turned[0].tobytes(), turned[1].tobytes()  # in the first and the second row
    path.with_suffix(".nii").write_bytes(data)


def _nowhere(path: Path) -> None:
    data = bytearray(encode_nifti(phantom(), AFFINE))
    data[252:256] = bytes(4)  # both codes
    path.with_suffix(".nii").write_bytes(data)


def _with_a_gap(path: Path) -> None:
    write_series(path, 901)[4].unlink()


def _magnetic(path: Path) -> None:
    for file in write_series(path, 902):
        edit(file, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")


def _picture(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path.with_suffix(".png"))


def _nested_archive(path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.txt", "a")
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())


WAYS: dict[str, Callable[[Path], None]] = {
    "E_GZ_TRUNCATED": _truncated,
    "E_MISSING_SLICES": _with_a_gap,
    "E_NONFINITE_VOXELS": _not_finite,
    "E_AFFINE_SHEAR": _sheared,
    "E_NO_ORIENTATION": _nowhere,
    "E_MODALITY_MISMATCH": _magnetic,
    "E_4D_INPUT": _four_dimensional,
    "E_NO_PATIENT_GEOMETRY": _picture,
    "E_NESTED_ARCHIVE": _nested_archive,
    "E_GZ_CRC": _damaged,
}
"""Ten ways to break a scan, by the code that each must be refused with."""


def make_batch(folder: Path, num_good: int) -> Batch:
    """Scans in files and series, in folders and beside each other, and one broken in each way."""
    batch = Batch(folder)
    for number in range(num_good):
        truth = phantom(number) > 50
        if number % 3 == 2:
            write_series(folder / f"series{number}", number)
            batch.masks[f"series{number}"] = truth
            continue
        place = Path(f"p{number}") / "scan.nii.gz" if number % 3 == 1 else Path(f"scan{number}.nii.gz")
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(folder / place, phantom(number), AFFINE)
        batch.masks[str(place)] = truth
    for number, (code, spoil) in enumerate(WAYS.items()):
        before = set(folder.iterdir())
        spoil(folder / f"broken{number}")
        (made,) = set(folder.iterdir()) - before
        inside = "broken8.zip/inner.zip"
        batch.codes[inside if code == "E_NESTED_ARCHIVE" else made.name] = code
    return batch
