"""Cubes cut out of volumes around nodules and candidates, as a cache of small volumes with one finding each.

A classification of them tells nodules from other marks: false-positive reduction, as in LUNA16's second track.

Shapes: M places of a volume.
"""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.annotations import add_findings
from medssl_cli.cache.fingerprints import NO_CONTENT
from medssl_cli.cache.items import Box, ItemRecord
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.imaging.geometry import Affine, Shape, ras_index_affine, spacing_mm
from medssl_cli.imaging.resample import resample
from medssl_cli.imaging.spots import UNKNOWN_DIAMETER_MM, Spots
from medssl_cli.imaging.volume import Volume

NUM_TRIES: Final = 4
"""Random places drawn for each that is wanted: those in nodules are left out."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class CubeOptions:
    """What is cut.

    Args:
        label_set: Set of the nodules, boxes of the source.
        names: Names of the boxes that are nodules; others of the set are taken for none.
        candidates: A set of boxes or points of which those that hit no nodule are cut too; None takes random places.
        size: Voxels of a cube along x, y and z.
        spacing_mm: Millimetres between voxels of a cube.
        max_others: Cubes without a nodule from one volume, chosen at random.
        seed: Seed of the choice.
    """

    label_set: str
    names: tuple[str, ...]
    candidates: str | None
    size: Shape
    spacing_mm: tuple[float, float, float]
    max_others: int
    seed: int = 0


@dataclass
class CubeCounts:
    """What came of it: cubes with and without a nodule, and those of both that were there before."""

    num_nodules: int = 0
    num_others: int = 0
    num_known: int = 0


def cut_cubes(
    source: Cache,
    records: Sequence[ItemRecord],
    target: Cache,
    options: CubeOptions,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CubeCounts:
    """Cut cubes around nodules, with the finding 1, and around places that hit none, with 0; what is there stays.

    Args:
        source: Cache of the volumes.
        records: Volumes with nodules, or of whom somebody knows that there are none.
        target: A cache with the key of the source, so that patients keep their keys; see `moved_patients` about splits.
        options: See `CubeOptions`.
        progress: Called with (done, total) volumes.

    Raises:
        StorageError: `E_IO`.
    """
    counts = CubeCounts()
    with target.writing():
        for done, record in enumerate(records, start=1):
            nodules = [box for box in record.boxes[options.label_set] if box.name in options.names]
            volume, affine = source.read_image(record), record.affine_array
            hits, others = _candidates(record, nodules, options)
            middles = np.concatenate([_centres(nodules, affine), hits])
            for value, places in ((1.0, middles), (0.0, others)):
                for place in places:
                    cube = cube_around(volume, place, options)
                    if not _add(target, record, cube, {options.names[0]: value}, options.label_set):
                        counts.num_known += 1
                    elif value:
                        counts.num_nodules += 1
                    else:
                        counts.num_others += 1
            progress(done, len(records))
    return counts


def moved_patients(source: Cache, target: Cache, seed: int = 0) -> set[str]:
    """Test patients of the volumes who have cubes and are no test patients there, by the rule of splits.

    The rule draws them apart for each combination of label sets, and of these cubes have only one.

    Args:
        source: Cache of the volumes.
        target: Cache of the cubes.
        seed: The recipes' `split_seed`.
    """
    cubes = target.records()
    there = {record.patient_key for record in cubes}
    return held_out_patients(source.records(), seed) & there - held_out_patients(cubes, seed)


def cube_around(volume: Volume, place_mm: Array, options: CubeOptions) -> Volume:
    """A cube whose middle lies at a place of the patient; outside of the volume its border goes on.

    Args:
        volume: Volume to cut from.
        place_mm: RAS+ millimetres, [3].
        options: Size and spacing along the axes of RAS that are nearest to the volume's own.
    """
    axes = (volume.affine @ ras_index_affine(volume.affine, volume.shape))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = axes / np.linalg.norm(axes, axis=0) * options.spacing_mm
    affine[:3, 3] = place_mm - affine[:3, :3] @ ((np.array(options.size) - 1) / 2)
    voxels = resample(volume.voxels, volume.affine, affine, options.size)
    if np.issubdtype(volume.voxels.dtype, np.integer):
        voxels = np.rint(voxels).astype(volume.voxels.dtype)
    return Volume(voxels, affine, volume.modality, volume.units)


def _add(target: Cache, record: ItemRecord, cube: Volume, findings: dict[str, float], label_set: str) -> bool:
    """Add a cube with its finding; false if it is there already."""
    item_id = target.item_id(cube)
    place = ",".join(f"{value:.3f}" for value in cube.affine[:3, 3].tolist())
    own = record.model_copy(
        update={
            "item_id": item_id,
            "series_key": target.pseudonyms.of("series", record.series_key, "cube", place),
            "shape": cube.shape,
            "dtype": str(cube.voxels.dtype),
            "affine": tuple(map(tuple, cube.affine.tolist())),
            "image_sha256": "0" * 64,
            "fingerprint": _fingerprint(record),
            "channel": None,
            "example_key": None,
            "superseded_by": None,
            "labels": {},
            "boxes": {},
            "findings": {},
        }
    )
    is_new = target.add(cube, own)
    add_findings(target, item_id, label_set, findings)
    return is_new


def _fingerprint(record: ItemRecord) -> str | None:
    """What the cubes of one image share, and with them those of the same image under another identity."""
    if record.fingerprint in (None, NO_CONTENT):
        return None
    return hashlib.sha256(f"{record.fingerprint}|{record.shape}".encode()).hexdigest()[: len(NO_CONTENT)]


def _candidates(record: ItemRecord, nodules: Sequence[Box], options: CubeOptions) -> tuple[Array, Array]:
    """Candidates that hit a nodule, and of those that hit nothing that is marked as many as are wanted, `[M, 3]` in mm.

    Without a set of candidates there are only random places that hit nothing.
    """
    rng = np.random.default_rng([options.seed, zlib.crc32(record.item_id.encode())])
    affine = record.affine_array
    if options.candidates is None:
        indices = rng.uniform(0, np.array(record.shape) - 1, (NUM_TRIES * options.max_others, 3))
        places = indices @ affine[:3, :3].T + affine[:3, 3]
    else:
        places = _centres(record.boxes.get(options.candidates, ()), affine)
    clear = places[~_hits(places, record.boxes[options.label_set], affine)]
    others = clear[np.sort(rng.permutation(len(clear))[: options.max_others])]
    hits = places[_hits(places, nodules, affine)] if options.candidates is not None else places[:0]
    return hits, others


def _hits(places: Array, boxes: Sequence[Box], affine: Affine) -> NDArray[np.bool_]:
    """Which places lie nearer to the centre of a box than its radius, `[M]`."""
    spots = Spots(_centres(boxes, affine), np.array([_diameter_mm(box, affine) for box in boxes]))
    hits: NDArray[np.bool_] = np.any(spots.hit_by(places), axis=1)
    return hits


def _centres(boxes: Sequence[Box], affine: Affine) -> Array:
    """Where boxes lie in the patient, `[M, 3]`."""
    indices = np.array([np.add(box.lower, box.upper) / 2 for box in boxes]).reshape(-1, 3)
    centres: Array = indices @ affine[:3, :3].T + affine[:3, 3]
    return centres


def _diameter_mm(box: Box, affine: Affine) -> float:
    """The diameter of a box, which is the mean of its sides where nobody measured it."""
    sides = np.subtract(box.upper, box.lower) * spacing_mm(affine)
    return box.diameter_mm or float(sides.mean()) or UNKNOWN_DIAMETER_MM
