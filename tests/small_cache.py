"""One-item building blocks for tests of the store: tiny images, their records, and their labels."""

import numpy as np

from medssl_cli.cache.fingerprints import fingerprint
from medssl_cli.cache.items import ItemRecord, Provenance
from medssl_cli.cache.store import Cache
from medssl_cli.imaging.volume import Volume

AFFINE = np.array([[-0.9, 0, 0, 12], [0, 0, 2.5, -31], [0, 0.7, 0, 55.5], [0, 0, 0, 1]], dtype=np.float64)


def volume_of(seed: int = 0, dtype: str = "int16", modality: str = "CT") -> Volume:
    voxels = np.random.default_rng(seed).integers(0, 100, (1, 6, 5, 4)).astype(dtype)
    return Volume(voxels, AFFINE, modality, "HU" if modality == "CT" else "a.u.")


def record_of(cache: Cache, volume: Volume, patient: str = "P1", series: str | None = None) -> ItemRecord:
    key = cache.pseudonyms.of
    return ItemRecord(
        item_id=cache.item_id(volume),
        patient_key=key("patient", patient),
        study_key=key("study", patient),
        series_key=key("series", series or patient),
        has_patient_identity=True,
        modality=volume.modality,
        units=volume.units,
        shape=volume.shape,
        dtype=volume.voxels.dtype.name,
        affine=tuple(map(tuple, volume.affine.tolist())),
        image_sha256="0" * 64,
        fingerprint=fingerprint(volume),
        provenance=Provenance(source_kind="nifti", num_files=1, medssl_version="0", key_id=cache.pseudonyms.key_id),
    )


def stored(cache: Cache, volume: Volume, patient: str = "P1", series: str | None = None) -> ItemRecord:
    record = record_of(cache, volume, patient, series)
    with cache.writing():
        assert cache.add(volume, record)
    return cache.record(record.item_id)


def label_of(values: np.ndarray) -> Volume:
    return Volume(values[None], AFFINE)
