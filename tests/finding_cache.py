"""A cache of small images with findings, made directly through the store: radiographs, or volumes."""

from pathlib import Path

import numpy as np

from medssl_cli.cache.annotations import add_boxes, add_findings
from medssl_cli.cache.items import Box, ItemRecord, Provenance
from medssl_cli.cache.store import Cache
from medssl_cli.imaging.volume import Volume
from tests.environment import give_known_key


def finding_cache(
    root: Path,
    *,
    num_patients: int,
    shape: tuple[int, int, int] = (24, 24, 1),
    images: int = 2,
    label_set: str | None = "toy",
    modality: str = "DX",
    box_set: str | None = None,
) -> Cache:
    """Images of noise; `Ball`, in every second image, is a bright ball and `Haze`, in every third, a bright border.

    Of every fifth image nobody knows about the haze. The boxes of `box_set` lie around the balls.
    """
    give_known_key(root)
    cache = Cache.open_or_create(root)
    with cache.writing():
        for number in range(num_patients * images):
            has_ball, has_haze = number % 2 == 0, number % 3 == 0
            image, inside = _image(number, shape, has_ball, has_haze)
            volume = Volume(image[None], np.eye(4), modality, "a.u.")
            key, patient = cache.pseudonyms.of, f"{modality}{number // images}"
            record = ItemRecord(
                item_id=cache.item_id(volume),
                patient_key=key("patient", patient),
                study_key=key("study", patient),
                series_key=key("series", f"{patient}/{number}"),
                has_patient_identity=True,
                modality=volume.modality,
                units=volume.units,
                shape=volume.shape,
                dtype="int16",
                affine=tuple(map(tuple, volume.affine.tolist())),
                image_sha256="0" * 64,
                spacing_kind="unknown" if shape[2] == 1 else None,
                provenance=Provenance(
                    source_kind="nifti", num_files=1, medssl_version="0.1.0", key_id=cache.pseudonyms.key_id
                ),
            )
            assert cache.add(volume, record)
            if label_set is not None:
                haze = {} if number % 5 == 0 else {"Haze": float(has_haze)}
                add_findings(cache, record.item_id, label_set, {"Ball": float(has_ball), **haze})
            if box_set is not None:
                add_boxes(cache, record.item_id, box_set, [_box_around(inside)] * has_ball)
    return cache


def _box_around(inside: np.ndarray) -> Box:
    lower, upper = (np.argwhere(inside).min(axis=0) - 0.5).tolist(), (np.argwhere(inside).max(axis=0) + 0.5).tolist()
    return Box(name="ball", lower=tuple(lower), upper=tuple(upper))


def _image(number: int, shape: tuple[int, int, int], has_ball: bool, has_haze: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*[np.arange(length) for length in shape], indexing="ij"))
    centre = np.array([rng.uniform(length * 0.4, length * 0.6) if length > 1 else 0 for length in shape])
    inside = np.linalg.norm(grid - centre[:, None, None, None], axis=0) < shape[0] * 0.25
    border = (grid[0] < 3) | (grid[0] >= shape[0] - 3)
    image = 100 + rng.normal(0, 10, shape) + 80 * (inside & has_ball) + 60 * (border & has_haze)
    return np.round(image).astype(np.int16), inside
