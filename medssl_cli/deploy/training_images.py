"""What a model knows of the images that it was trained on, and what of a scan is unlike all of them."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from medssl_cli.base.strict import NonNegativeFloat, PositiveInt, Strict, Triple
from medssl_cli.deploy.surprise import EmbeddingSummary
from medssl_cli.imaging.geometry import ras_index_affine, spacing_mm
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing

SLACK: Final = 1.25
"""Factor by which sizes may lie outside of those of the training."""
VALUE_SLACK: Final = 0.5
"""Share of the training's range of values by which values may lie outside of it."""
LEAST_CONTRAST: Final = 0.25
"""Values of a scan that span less than this share of what those of any training image span are of another scale."""
END_PERCENTILES: Final = (0.5, 99.5)
VALUES_PER_AXIS: Final = 64
AXES: Final = ("left-right", "front-back", "head-feet")


class Extent(Strict):
    """Least and largest size in millimetres, along right, anterior and superior."""

    low: Triple
    high: Triple

    @classmethod
    def of(cls, sizes: Sequence[Sequence[float]]) -> Self:
        """Extent of several sizes."""
        found = np.array(sizes)
        return cls(low=tuple(found.min(axis=0).round(4)), high=tuple(found.max(axis=0).round(4)))


class ValueSpan(Strict):
    """Where the values of a channel end, leaving out half a percent at each end of an image.

    Args:
        low: Lowest of all images.
        high: Highest of all images.
        least: Least distance between both ends of one image.
    """

    low: FiniteFloat
    high: FiniteFloat
    least: NonNegativeFloat

    @classmethod
    def of(cls, ends: Sequence[tuple[float, float]]) -> Self:
        """Span of several images, each by its own ends."""
        lows, highs = zip(*ends, strict=True)
        least = min(high - low for low, high in ends)
        return cls(low=round(min(lows), 6), high=round(max(highs), 6), least=round(least, 6))


class TrainingImages(Strict):
    """What the images of the training were like, without anything of a single patient.

    Args:
        num_patients: Patients whose images were learnt from.
        num_images: Their images, of several channels those of the first.
        modalities: How many of these are of each modality.
        spacing_mm: Distances between voxels; None where no image states any.
        field_of_view_mm: Sizes of the images; None where no image states any.
        values: Values of each channel, of the images whose voxels were looked at.
        num_sampled: How many these were.
        embeddings: What tells how far a scan lies from them; None where there were too few images.
    """

    num_patients: PositiveInt
    num_images: PositiveInt
    modalities: dict[str, PositiveInt]
    spacing_mm: Extent | None = None
    field_of_view_mm: Extent | None = None
    values: Annotated[tuple[ValueSpan, ...], Field(min_length=1)]
    num_sampled: PositiveInt
    embeddings: EmbeddingSummary | None = None

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if sum(self.modalities.values()) != self.num_images or self.num_sampled > self.num_images:
            raise ValueError("modalities must sum up to num_images, of which num_sampled are some")
        return self


def sizes_mm(
    affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Spacing and field of view along right, anterior and superior."""
    order = np.abs(ras_index_affine(affine, shape)[:3, :3])
    spacing = np.array(spacing_mm(affine))
    ours, whole = (spacing @ order).tolist(), (spacing * shape @ order).tolist()
    return (ours[0], ours[1], ours[2]), (whole[0], whole[1], whole[2])


def value_ends(voxels: NDArray[np.generic]) -> tuple[float, float]:
    """Where the values of an image `[1, X, Y, Z]` end, by a grid of its voxels."""
    x, y, z = (-(-size // VALUES_PER_AXIS) for size in voxels.shape[1:])
    low, high = np.percentile(voxels[0, ::x, ::y, ::z].astype(np.float64), END_PERCENTILES).tolist()
    return low, high


def departures(
    known: TrainingImages, images: Sequence[Volume], preprocessing: Preprocessing, *, has_spacing: bool
) -> list[str]:
    """What of a scan lies outside of what the training images were like, each with numbers.

    Values count only where a rule gives them a meaning: a window. Other rules make the same of any scale.

    Args:
        known: What they were like.
        images: Images of the scan, one per channel.
        preprocessing: Preprocessing of the model.
        has_spacing: Whether the sizes of the first image are known.
    """
    first, said = images[0], list[str]()
    modality = first.modality
    if modality != "unknown" and "unknown" not in known.modalities and modality not in known.modalities:
        said.append(f"the modality is {modality}, that of the training images {' or '.join(sorted(known.modalities))}")
    if has_spacing:
        spacing, view = sizes_mm(first.affine, first.shape)
        said += _outside("spacing", spacing, known.spacing_mm) + _outside("field of view", view, known.field_of_view_mm)
    for number, (image, rule, span) in enumerate(zip(images, preprocessing.rules, known.values, strict=False)):
        if rule.window_hu is None:
            continue
        low, high = value_ends(image.voxels)
        slack = VALUE_SLACK * (span.high - span.low)
        is_outside = low < span.low - slack or high > span.high + slack
        if is_outside or high - low < LEAST_CONTRAST * span.least:
            names = preprocessing.channel_names
            of = f" of {names[number]}" if names else ""
            said.append(f"values{of} are {low:.4g} to {high:.4g}, in training {span.low:.4g} to {span.high:.4g}")
    return said


def _outside(what: str, sizes: Sequence[float], known: Extent | None) -> list[str]:
    if known is None:
        return []
    return [
        f"{what} {axis} is {size:.4g} mm, in training {low:.4g} to {high:.4g}"
        for axis, size, low, high in zip(AXES, sizes, known.low, known.high, strict=True)
        if not low / SLACK <= size <= high * SLACK
    ]


def likeness(known: EmbeddingSummary, embedding: NDArray[Any]) -> dict[str, float]:
    """For a report: the distance of a scan, which share of the images left out lies nearer, and the limit."""
    distance = known.distance(embedding)
    return {
        "distance": round(distance, 4),
        "percentile": round(known.percentile(distance), 2),
        "limit": round(known.limit, 4),
    }
