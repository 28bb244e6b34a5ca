"""A hospital's scans, as they arrive: the phantoms as files.

    dicom/                  unlabelled patients: CT series in a messy tree, junk beside them, one slice lost in
                            transfer, one series exported twice
    labelled/images/        labelled patients: NIfTI, axes in different orders
    labelled/labels/        their label maps under the same names
    unseen/dicom/           one series that no training sees
    unseen/scan.nii.gz      one NIfTI that no training sees
    unseen/reference/       what is true of the two, for the page only: nothing on the road reads it

Nobody is in both `dicom/` and `labelled/`, as in a hospital where the archive is unlabelled and a research set came
from elsewhere. So no image is stored twice under two patients, and no split can separate the copies of one patient.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.files import remove_temporaries, sha256_json, storage_errors, write_json
from medssl_cli.demo.anatomy import Phantom, thorax
from medssl_cli.formats.dicom import write_ct_series
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.imaging.volume import Volume

IN_PLANE: Final = 96
HEIGHT_MM: Final = (148.0, 176.0)
FIELD_OF_VIEW_MM: Final = (335.0, 375.0)
SLICE_MM: Final = (3.0, 3.75, 4.0, 5.0)
DONE: Final = "cohort.json"
ORIENTATIONS: Final = ((1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, 1, -1))
JUNK: Final = {
    "README.txt": b"Exported by the archive. Open VIEWER.EXE to see the pictures.\n",
    "VIEWER.EXE": b"MZ" + bytes(range(256)) * 8,
    "report.pdf": b"%PDF-1.4\n%%EOF\n",
    "Thumbs.db": bytes(range(255, 0, -1)) * 4,
    ".DS_Store": b"\x00\x00\x00\x01Bud1" + bytes(64),
    "IM00000": b"",
}

Kind = TypeVar("Kind", bound=np.generic)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cohort:
    """Where the files of a cohort lie.

    Args:
        root: Folder of all of them.
        num_series: Intact, different CT series in `dicom`.
        num_labelled: Labelled patients.
    """

    root: Path
    num_series: int
    num_labelled: int

    @property
    def dicom(self) -> Path:
        """Messy tree of unlabelled series."""
        return self.root / "dicom"

    @property
    def labelled(self) -> Path:
        """Folder pair `images`, `labels`."""
        return self.root / "labelled"

    @property
    def unseen_series(self) -> Path:
        """DICOM series for inference."""
        return self.root / "unseen" / "dicom"

    @property
    def unseen_nifti(self) -> Path:
        """NIfTI for inference."""
        return self.root / "unseen" / "scan.nii.gz"

    def reference(self, name: str) -> Path:
        """True label map of "dicom" or "nifti", the unseen two."""
        return self.root / "unseen" / "reference" / f"{name}.nii.gz"


def write_cohort(
    folder: Path, num_patients: int, num_labelled: int, seed: int, progress: Progress | None = None
) -> Cohort:
    """Draw patients and write their scans; a complete cohort that is there already stays as it is.

    Args:
        folder: Where to; made if it does not exist.
        num_patients: Unlabelled patients with intact DICOM series; one more has lost a slice.
        num_labelled: Patients with a NIfTI and a label map.
        seed: The same seed writes the same voxels.
        progress: Called with patients done and patients in all.

    Raises:
        StorageError: `E_IO`.
    """
    cohort = Cohort(folder, num_patients, num_labelled)
    recipe = {"num_patients": num_patients, "num_labelled": num_labelled, "seed": seed, "version": 1}
    mark = folder / f"{sha256_json(recipe)[:12]}-{DONE}"
    if mark.is_file():
        return cohort
    with storage_errors("the demo's scans"):
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)
        for part in (cohort.dicom, cohort.labelled, cohort.root / "unseen"):
            shutil.rmtree(part, ignore_errors=True)
        total = num_patients + 1 + num_labelled + 2
        for done, _ in enumerate(_write_all(cohort, np.random.default_rng(seed)), start=1):
            if progress is not None:
                progress(done, total)
        write_json(mark, recipe)
    return cohort


def _write_all(cohort: Cohort, rng: np.random.Generator) -> Iterator[None]:
    """Write one patient per step; each has a generator of its own, so that counts do not change the others."""
    sources = iter(rng.spawn(cohort.num_series + cohort.num_labelled + 3))
    folders = []
    for index in range(cohort.num_series):
        folders.append(_write_series(cohort.dicom, next(sources), index=index))
        yield
    _write_series(cohort.dicom, next(sources), index=cohort.num_series, lost_slice=True)
    yield
    _write_mess(cohort.dicom, folders, rng)
    for index in range(cohort.num_labelled):
        phantom = _draw(next(sources))
        name, turn = f"heart_{index:03d}.nii.gz", ORIENTATIONS[index % len(ORIENTATIONS)]
        _write_nifti(cohort.labelled / "images" / name, phantom.hu, phantom.affine, turn)
        _write_nifti(cohort.labelled / "labels" / name, phantom.labels, phantom.affine, turn)
        yield
    phantom = _draw(next(sources))
    _write_scan(cohort.unseen_series, phantom, rng, patient="DEMO-UNSEEN", upwards=True)
    _write_nifti(cohort.reference("dicom"), phantom.labels, phantom.affine, ORIENTATIONS[0])
    yield
    phantom = _draw(next(sources))
    _write_nifti(cohort.unseen_nifti, phantom.hu, phantom.affine, ORIENTATIONS[2])
    _write_nifti(cohort.reference("nifti"), phantom.labels, phantom.affine, ORIENTATIONS[2])
    yield


def _draw(rng: np.random.Generator) -> Phantom:
    """One patient in a field of view and with a slice distance of their own."""
    in_plane = round(float(rng.uniform(*FIELD_OF_VIEW_MM)) / IN_PLANE, 4)
    between = float(rng.choice(SLICE_MM))
    num_slices = round(float(rng.uniform(*HEIGHT_MM)) / between)
    return thorax(rng, shape=(IN_PLANE, IN_PLANE, num_slices), spacing_mm=(in_plane, in_plane, between))


def _write_scan(folder: Path, phantom: Phantom, rng: np.random.Generator, *, patient: str, upwards: bool) -> list[Path]:
    """One CT series; columns run to the patient's left and rows to the back, file names say nothing."""
    turn = (-1, -1, 1 if upwards else -1)
    voxels, affine = _turned(phantom.hu, phantom.affine, turn)
    names = rng.choice(np.arange(10**6, 10**6 + 9999), size=voxels.shape[2], replace=False)
    extension = ("", ".dcm", ".IMA")[int(rng.integers(3))]
    study, series, frame = (f"2.25.{rng.integers(1 << 60)}{level}" for level in range(3))
    return write_ct_series(
        folder,
        Volume(voxels[np.newaxis], affine, modality="CT", units="HU"),
        patient_id=patient,
        patient_name=f"Phantom^{patient}",
        study_uid=study,
        series_uid=series,
        frame_of_reference_uid=frame,
        series_description="Thorax phantom",
        file_names=[f"{name:08d}{extension}" for name in names],
    )


def _write_series(root: Path, rng: np.random.Generator, *, index: int, lost_slice: bool = False) -> Path:
    """One series somewhere in the tree: among others, deep, or alone; slices stored upwards or downwards."""
    patient, disc = f"DEMO-{index:03d}", root / f"disc{index % 3}"
    folder = (disc, disc / f"{rng.integers(10**7):07d}" / "CT", root / f"{patient} study" / "series 1")[index % 3]
    files = _write_scan(folder, _draw(rng), rng, patient=patient, upwards=bool(index % 2))
    if lost_slice:
        files[len(files) // 2].unlink()
    return folder


def _write_mess(root: Path, folders: list[Path], rng: np.random.Generator) -> None:
    """Junk beside the scans, and the second series once more under other names."""
    targets = [root, *sorted(set(folders))[:2]]
    for index, (name, content) in enumerate(JUNK.items()):
        (targets[index % len(targets)] / name).write_bytes(content)
    if len(folders) > 1:
        copies = root / "copy of old disc"
        copies.mkdir()
        for file in sorted(folders[1].iterdir()):
            if file.name not in JUNK:
                shutil.copy(file, copies / f"{rng.integers(10**9):09d}")


def _turned(
    voxels: NDArray[Kind], affine: NDArray[np.float64], turn: tuple[int, int, int]
) -> tuple[NDArray[Kind], NDArray[np.float64]]:
    """`[X, Y, Z]` voxels with the axes of -1 reversed; every voxel keeps its place in the world."""
    flip = np.diag([*turn, 1]).astype(np.float64)
    flip[:3, 3] = [0 if way > 0 else size - 1 for way, size in zip(turn, voxels.shape, strict=True)]
    return np.ascontiguousarray(voxels[tuple(slice(None, None, way) for way in turn)]), affine @ flip


def _write_nifti(
    path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64], turn: tuple[int, int, int]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, *_turned(voxels, affine, turn))
