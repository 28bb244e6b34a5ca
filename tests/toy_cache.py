"""A cache of small images with structure, made directly through the store: fast, and no file format involved."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medssl_cli.cache.items import ItemRecord, Provenance
from medssl_cli.cache.store import Cache
from medssl_cli.imaging.volume import Volume
from tests.environment import give_known_key


class Marked(NamedTuple):
    """A label map, what it calls its values, and its value of voxels that nobody judged."""

    voxels: np.ndarray
    names: dict[int, str]
    ignore: int | None = None


def toy_cache(
    root: Path,
    *,
    num_patients: int,
    size: int = 32,
    modality: str = "CT",
    num_classes: int = 2,
    mark: Callable[[int, np.ndarray], Marked] | None = None,
    series: Sequence[str] = (),
    thickness: int = 1,
) -> Cache:
    """Bright balls (class 1) with a darker ball beside them (class 2) on a gradient, at 2 mm, one per patient.

    `mark` makes the label map of a patient from its number and the map of balls. Of `thickness` slices one is kept,
    and they lie so many times as far apart. Who is a test patient is the same each time.
    """
    if not root.exists():
        give_known_key(root)
    cache = Cache.open_or_create(root)
    with cache.writing():
        for index in range(num_patients):
            image, label = (voxels[..., ::thickness] for voxels in _balls(np.random.default_rng(index), size))
            affine = np.diag([2.0, 2.0, 2.0 * thickness, 1.0])
            volume = Volume(image[None], affine, modality, "HU" if modality == "CT" else "a.u.")
            key = cache.pseudonyms.of
            record = ItemRecord(
                item_id=cache.item_id(volume),
                patient_key=key("patient", str(index)),
                study_key=key("study", str(index)),
                series_key=key("series", series[index] if series else str(index)),
                has_patient_identity=True,
                modality=modality,
                units=volume.units,
                shape=volume.shape,
                dtype="int16",
                affine=tuple(map(tuple, affine.tolist())),
                image_sha256="0" * 64,
                provenance=Provenance(
                    source_kind="nifti", num_files=1, medssl_version="0.1.0", key_id=cache.pseudonyms.key_id
                ),
            )
            assert cache.add(volume, record)
            names = {value: f"ball_{value}" for value in range(1, num_classes + 1)}
            marked = Marked(label, names) if mark is None else mark(index, label)
            labels = Volume(marked.voxels[None], affine, modality)
            cache.add_label(record.item_id, "seg", labels, marked.names, ignore=marked.ignore)
    return cache


def _balls(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"))
    centre = rng.uniform(size * 0.35, size * 0.65, 3)
    distance = np.linalg.norm(grid - centre[:, None, None, None], axis=0)
    beside = centre + np.array([size * 0.2, 0, 0])
    second = np.linalg.norm(grid - beside[:, None, None, None], axis=0)
    label = np.where(distance < size * 0.16, 1, np.where(second < size * 0.12, 2, 0)).astype(np.uint8)
    image = -100 + 2 * grid[2] + np.choose(label, [0, 250, 120]) + rng.normal(0, 10, label.shape)
    return image.astype(np.int16), label
