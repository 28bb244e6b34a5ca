"""A cache for methods that learn from 2D images: toy volumes, and radiographs of depth 1 beside them."""

from pathlib import Path

import numpy as np

from medssl_cli.cache.items import ItemRecord, Provenance
from medssl_cli.cache.store import Cache
from medssl_cli.imaging.volume import Volume
from tests.environment import give_known_key
from tests.toy_cache import toy_cache

AFFINE = np.eye(4)


def slice_cache(root: Path, *, num_volumes: int = 14, num_pictures: int = 24, size: int = 24) -> Cache:
    """Volumes of modality CT with labels, and pictures of modality DX: a bright disc on a slope."""
    give_known_key(root)
    cache = toy_cache(root, num_patients=num_volumes, size=size)
    key = cache.pseudonyms.of
    with cache.writing():
        for index in range(num_pictures):
            volume = Volume(_picture(np.random.default_rng(100 + index), size), AFFINE, "DX")
            record = ItemRecord(
                item_id=cache.item_id(volume),
                patient_key=key("patient", f"picture {index}"),
                study_key=key("study", f"picture {index}"),
                series_key=key("series", f"picture {index}"),
                has_patient_identity=True,
                modality="DX",
                units="a.u.",
                shape=volume.shape,
                dtype="uint8",
                affine=tuple(map(tuple, AFFINE.tolist())),
                image_sha256="0" * 64,
                spacing_kind="unknown",
                provenance=Provenance(
                    source_kind="picture", num_files=1, medssl_version="0.1.0", key_id=cache.pseudonyms.key_id
                ),
            )
            assert cache.add(volume, record)
    return cache


def _picture(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(size + 6), np.arange(size), indexing="ij")
    centre = rng.uniform(size * 0.3, size * 0.7, 2)
    disc = np.hypot(x - centre[0], y - centre[1]) < size * rng.uniform(0.1, 0.3)
    return (2 * x + 100 * disc + rng.normal(0, 4, x.shape)).clip(0, 255).astype(np.uint8)[None, ..., None]
