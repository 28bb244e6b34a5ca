"""What a labelled set of images is like: sizes, spacings and amounts of all, intensities of some of them.

Sizes, spacings and amounts come from the records, so they cost nothing. For intensities a fixed choice of images is
read, so that the same cache gives the same numbers.

Shapes: N images, X Y Z space.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import CachedImage, ItemRecord
from medssl_cli.cache.splits import shuffled
from medssl_cli.cache.store import Cache
from medssl_cli.data.selection import examples_of, read_images
from medssl_cli.imaging.geometry import ras_index_affine, spacing_mm
from medssl_cli.imaging.placement import on_one_grid, placement_of
from medssl_cli.imaging.volume import Volume
from medssl_cli.plan.geometry import Array
from medssl_cli.preprocessing import Preprocessing

NUM_SAMPLED: Final = 24
"""Images whose intensities are read."""
VOXELS_PER_IMAGE: Final = 20_000
ALL: Final = "all classes"
PERCENTILES: Final = (0.5, 50.0, 99.5)
ClassesOf = Callable[[ItemRecord, Volume], dict[str, NDArray[np.bool_]]]
"""Which voxels `[X, Y, Z]` of an image are of which class."""


@dataclass(frozen=True)
class ValueRange:
    """Values of voxels: their 0.5th, 50th and 99.5th percentile."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class ChannelValues:
    """Intensities of one channel.

    Args:
        name: Name of the channel; empty for one without a name.
        is_hu: Most of its images are in Hounsfield units.
        by_class: Values in the voxels of each class, and of all of them together; of the whole image where there are
            none.
    """

    name: str
    is_hu: bool
    by_class: dict[str, ValueRange]

    @property
    def foreground(self) -> ValueRange:
        """Range of all classes together."""
        return self.by_class[ALL]


@dataclass(frozen=True)
class ClassAmount:
    """How much of a class there is.

    Args:
        name: Name of the class.
        num_images: That show it.
        num_patients: Number of patients of these.
        median: Median amount in the images that show it: millilitres of a structure, or number of boxes, or 1.
        low: Their 10th percentile.
    """

    name: str
    num_images: int
    num_patients: int
    median: float
    low: float


@dataclass(frozen=True)
class Fingerprint:
    """What a labelled set is like, without its test patients.

    Args:
        label_set: Name of the labels.
        unit: What amounts of classes are counted in.
        num_patients: Who has labels.
        modalities: How many images of each.
        spacings: Millimetres along right, anterior, superior, `[N, 3]`.
        shapes: Voxels along the same axes, `[N, 3]`.
        content_share: Along each axis, how much of an image the box around all of its content takes; median, `[3]`.
        num_sampled: Images whose voxels were read.
        channels: Their intensities.
        classes: Amounts.
        sizes: Sizes of single boxes as shares of the image, or in millimetres in volumes, `[M, 2 or 3]`.
    """

    label_set: str
    unit: str
    num_patients: int
    modalities: dict[str, int]
    spacings: Array
    shapes: Array
    content_share: Array
    num_sampled: int
    channels: tuple[ChannelValues, ...]
    classes: tuple[ClassAmount, ...]
    sizes: Array = field(default_factory=lambda: np.zeros((0, 2)))

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.shapes)

    @property
    def is_flat(self) -> bool:
        """Whether the images are single slices: radiographs and pictures."""
        return bool(np.median(self.shapes[:, 2]) == 1)

    @property
    def modality(self) -> str | None:
        """The modality of all images that have one; None if they have several."""
        known = [name for name in self.modalities if name != "unknown"]
        return known[0] if len(known) == 1 else None

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label_set": self.label_set,
            "num_images": self.num_images,
            "num_patients": self.num_patients,
            "modalities": self.modalities,
            "spacing_mm": _percentiles(self.spacings),
            "shape": _percentiles(self.shapes),
            "content_share": [round(share, 3) for share in self.content_share.tolist()],
            "num_sampled": self.num_sampled,
            "channels": [asdict(channel) for channel in self.channels],
            "unit": self.unit,
            "classes": [asdict(each) for each in self.classes],
            "sizes": _percentiles(self.sizes) if len(self.sizes) else None,
        }


def look_at(
    cache: Cache,
    records: Sequence[ItemRecord],
    preprocessing: Preprocessing,
    talk: Talk,
    *,
    label_set: str,
    unit: str,
    classes: Sequence[ClassAmount],
    classes_of: ClassesOf,
    sizes: Array | None = None,
) -> Fingerprint:
    """Take the fingerprint of labelled images.

    Args:
        cache: Where they are.
        records: Records without test patients; at least one.
        preprocessing: Names the channels.
        talk: Told of progress.
        label_set: Name of the labels.
        unit: Unit of the amounts of classes.
        classes: Their amounts.
        classes_of: Says which voxels of a sampled image are of which class.
        sizes: Sizes of boxes.
    """
    by_id = {record.item_id: record for record in records}
    chosen = [by_id[item_id] for item_id in shuffled(sorted(by_id), 0)[:NUM_SAMPLED]]
    names = preprocessing.channel_names or ("",)
    values: list[dict[str, list[Array]]] = [{} for _ in names]
    hu, shares = Counter[int](), []
    for done, (record, example) in enumerate(
        zip(chosen, examples_of(cache, chosen, preprocessing), strict=True), start=1
    ):
        images = on_one_grid(read_images(cache, example))
        shares.append(_content_share(images))
        masks = classes_of(record, images[0])
        for number, image in enumerate(images):
            hu[number] += image.units == "HU"
            for name, found in _sampled(image.voxels[0], masks).items():
                values[number].setdefault(name, []).append(found)
        talk.progress("looking at the images", done, len(chosen))
    return Fingerprint(
        label_set=label_set,
        unit=unit,
        num_patients=len({record.patient_key for record in records}),
        modalities=dict(Counter(record.modality for record in records)),
        spacings=np.array([_along_axes(record, spacing_mm(record.affine_array)) for record in records]),
        shapes=np.array([_along_axes(record, record.shape) for record in records], dtype=np.float64),
        content_share=np.median(shares, axis=0),
        num_sampled=len(chosen),
        channels=tuple(
            ChannelValues(
                name, 2 * hu[number] > len(chosen), {key: _value_range(own) for key, own in values[number].items()}
            )
            for number, name in enumerate(names)
        ),
        classes=tuple(classes),
        sizes=np.zeros((0, 2)) if sizes is None else sizes,
    )


def amount(name: str, found: Sequence[tuple[str, float]]) -> ClassAmount:
    """Amount of a class, from (patient, amount) of each image that shows it."""
    amounts = [each for _, each in found] or [0.0]
    median, low = (float(np.percentile(amounts, share)) for share in (50, 10))
    return ClassAmount(name, len(found), len({patient for patient, _ in found}), median, low)


def _sampled(voxels: NDArray[np.generic], masks: dict[str, NDArray[np.bool_]]) -> dict[str, Array]:
    """Some values of each class and of all together; of the non-zero voxels where there is no class."""
    shown = {name: mask for name, mask in masks.items() if mask.any()}
    union = np.any([*shown.values()], axis=0) if shown else voxels != 0
    if not union.any():
        union = np.ones(voxels.shape, dtype=bool)
    return {name: _evenly(voxels[mask]) for name, mask in {**shown, ALL: union}.items()}


def _evenly(values: NDArray[np.generic]) -> Array:
    step = max(1, values.size // VOXELS_PER_IMAGE)
    return values[::step].astype(np.float64)


def _value_range(parts: list[Array]) -> ValueRange:
    low, median, high = (float(value) for value in np.percentile(np.concatenate(parts), PERCENTILES))
    return ValueRange(low, median, high)


def _content_share(images: Sequence[Volume]) -> Array:
    placement = placement_of(images, Preprocessing(zscore=True, foreground_crop=True))
    record = images[0]
    whole = np.array(record.shape) @ _order(record.affine, record.shape)
    return np.array(placement.box_shape) / whole


def _along_axes(record: CachedImage, values: Sequence[float]) -> Array:
    """Numbers along the axes of an array as numbers along right, anterior, superior."""
    return np.array(values) @ _order(record.affine_array, record.shape)


def _order(affine: Array, shape: tuple[int, int, int]) -> Array:
    order: Array = np.abs(ras_index_affine(affine, shape)[:3, :3])
    return order


def _percentiles(values: Array) -> dict[str, list[float]]:
    """Per axis."""
    return {str(share): np.percentile(values, share, axis=0).round(4).tolist() for share in (0, 10, 50, 90, 100)}
