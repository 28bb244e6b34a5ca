"""Chest CT in small: noise like air with round nodules of known place, as a cache, or as DICOM with a table."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.annotations import add_boxes
from medssl_cli.cache.items import Box, ItemRecord, Provenance
from medssl_cli.cache.store import Cache
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import write_volume
from tests.environment import give_known_key

SPACING_MM = (1.0, 1.0, 1.5)
LUNG_HU, NODULE_HU, NOISE_HU = -850, 50, 40


@dataclass(frozen=True)
class Phantom:
    """A volume with its nodules: centres in RAS+ millimetres [M, 3], diameters in millimetres [M]."""

    volume: Volume
    centres_mm: NDArray[np.float64]
    diameters_mm: NDArray[np.float64]

    def box(self, number: int) -> Box:
        """Box of one nodule, in continuous voxel indices."""
        index = np.linalg.inv(self.volume.affine) @ [*self.centres_mm[number], 1]
        half = self.diameters_mm[number] / 2 / np.array(self.volume.spacing_mm)
        lower, upper = (index[:3] - half).tolist(), (index[:3] + half).tolist()
        diameter = float(self.diameters_mm[number])
        return Box(name="nodule", lower=tuple(lower), upper=tuple(upper), diameter_mm=diameter, num_readers=4)


def phantom(
    seed: int, *, shape: tuple[int, int, int] = (40, 36, 24), num_nodules: int = 2, num_vessels: int = 0
) -> Phantom:
    """A volume as DICOM gives it, columns to the left and rows to the back; nodules lie apart from each other.

    Vessels are tubes as dense as nodules that run through all of the volume.
    """
    rng = np.random.default_rng(seed)
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = (18.0, 31.0, -120.0)
    diameters = rng.uniform(7, 11, num_nodules)
    extent = np.array(shape) * SPACING_MM
    centres: list[NDArray[np.float64]] = []
    while len(centres) < num_nodules:
        place = rng.uniform(7, extent - 7)
        if all(np.linalg.norm(place - other) > 13 for other in centres):
            centres.append(place)
    grid = np.stack(np.meshgrid(*[np.arange(size) * step for size, step in zip(shape, SPACING_MM, strict=True)],
                                indexing="ij"), axis=-1)  # fmt: skip
    voxels = LUNG_HU + rng.normal(0, NOISE_HU, shape)
    for _ in range(num_vessels):
        through, along = rng.uniform(0, extent), rng.normal(size=3)
        away = np.cross(grid - through, along / np.linalg.norm(along))
        voxels[(np.linalg.norm(away, axis=-1) <= rng.uniform(1, 2.5)) & (voxels < LUNG_HU / 2)] += NODULE_HU - LUNG_HU
    for centre, diameter in zip(centres, diameters, strict=True):
        inside = np.linalg.norm(grid - centre, axis=-1) <= diameter / 2
        voxels[inside] = NODULE_HU + rng.normal(0, NOISE_HU, int(inside.sum()))
    indices = np.array(centres).reshape(-1, 3) / SPACING_MM
    world = indices @ affine[:3, :3].T + affine[:3, 3]
    return Phantom(Volume(np.round(voxels).astype(np.int16)[None], affine, "CT", "HU"), world, diameters)


def nodule_cache(root: Path, *, num_patients: int, seed: int = 0) -> Cache:
    """A cache with one volume of each patient; every fifth has no nodule, and somebody looked."""
    give_known_key(root)
    cache = Cache.open_or_create(root)
    with cache.writing():
        for number in range(num_patients):
            made = phantom(1000 * seed + number, num_nodules=0 if number % 5 == 4 else 1 + number % 2)
            volume, key = made.volume, cache.pseudonyms.of
            record = ItemRecord(
                item_id=cache.item_id(volume),
                patient_key=key("patient", str(number)),
                study_key=key("study", str(number)),
                series_key=key("series", str(number)),
                has_patient_identity=True,
                modality="CT",
                units="HU",
                shape=volume.shape,
                dtype="int16",
                affine=tuple(map(tuple, volume.affine.tolist())),
                image_sha256="0" * 64,
                provenance=Provenance(
                    source_kind="nifti", num_files=1, medssl_version="0.1.0", key_id=cache.pseudonyms.key_id
                ),
            )
            assert cache.add(volume, record)
            add_boxes(cache, record.item_id, "nodules", [made.box(each) for each in range(len(made.diameters_mm))])
    return cache


def write_dicom(folder: Path, number: int, made: Phantom) -> str:
    """A phantom as a CT series of a patient of its own; returns its SeriesInstanceUID."""
    series = f"1.2.826.0.1.3680043.8.498.77.{number}"
    write_volume(
        folder / f"patient-{number}",
        made.volume,
        patient_id=f"P{number}",
        study_uid=f"{series}.1",
        series_uid=series,
        frame_of_reference_uid=f"{series}.2",
    )
    return series


def annotations_csv(phantoms: dict[str, Phantom]) -> str:
    """A table as LUNA16 has it: by SeriesInstanceUID, in LPS+ millimetres."""
    rows = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    for series, made in phantoms.items():
        for (x, y, z), diameter in zip(made.centres_mm.tolist(), made.diameters_mm.tolist(), strict=True):
            rows.append(f"{series},{-x:.6f},{-y:.6f},{z:.6f},{diameter:.6f}")
    return "\n".join(rows) + "\n"
