"""What an exported model answers with, as plain data: its names, and all that turns a network's numbers into answers.

There are four kinds of answers. Those of a task are read by `tasks/<name>/decode.py` of the task with that head.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from medssl_cli.base.classes import Activation, Member, Members, WantedClasses
from medssl_cli.base.strict import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Size, Strict
from medssl_cli.preprocessing import Preprocessing

ClassWord = Annotated[str, Field(min_length=1, max_length=64)]
Sizes = tuple[int | str, ...]
"""Sizes of a tensor: a number of elements along each axis, or the name of one that is free."""
StridesPerAxis = Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=3)]
Names = Annotated[dict[int, str], Field(min_length=1, max_length=255)]


class Port(Strict):
    """A tensor that a network takes or gives.

    Args:
        name: Name in the graph.
        sizes: Along each axis; that of the first axis, and others that have a name, are free.
        is_bool: It holds truth values, else float32.
    """

    name: str
    sizes: Sizes
    is_bool: bool = False


class OperatingPoint(Strict):
    """Where a score becomes a yes, and how often that was right on the validation images.

    Args:
        threshold: Scores of at least this count as a yes.
        rule: How it was chosen: `youden` has the largest sum of sensitivity and specificity, `one_false_per_image` is
            the lowest at which there is at most one false box per image, `fixed` was not chosen on images, because the
            validation images cannot tell.
        sensitivity: Share of the images with the finding, or of the boxes, that it finds.
        specificity: Share of the images without the finding that it leaves; None of boxes.
        false_per_image: False boxes per image; None of findings.
        num_patients: Validation patients of whom it is known.
    """

    threshold: Probability
    rule: Literal["youden", "one_false_per_image", "fixed"]
    sensitivity: Probability | None = None
    specificity: Probability | None = None
    false_per_image: Annotated[float, Field(ge=0)] | None = None
    num_patients: Annotated[int, Field(ge=0)] = 0


class LesionRule(Strict):
    """What counts as one lesion of a structure: the rule of BraTS 2023 with its values for gliomas.

    Args:
        dilation_voxels: Parts whose dilations by this much touch are one lesion.
        min_volume_mm3: Lesions that are not larger are left out.
    """

    dilation_voxels: Annotated[int, Field(ge=0, le=50)] = 3
    min_volume_mm3: NonNegativeFloat = 50.0


class LargestParts(Strict):
    """Classes of which only the largest connected part counts; voxels apart from it are background.

    Args:
        foreground: Whether that holds of all classes together, before each by itself.
        classes: Names of the classes of which it holds.
    """

    foreground: bool = False
    classes: tuple[ClassWord, ...] = ()

    @classmethod
    def of_most(cls, several: "Sequence[LargestParts]") -> "LargestParts":
        """What more than half of several say."""
        count = Counter(name for each in several for name in each.classes)
        names = dict.fromkeys(name for each in several for name in each.classes)
        return cls(
            foreground=sum(each.foreground for each in several) * 2 > len(several),
            classes=tuple(name for name in names if count[name] * 2 > len(several)),
        )


class MasksHead(Strict):
    """A class for every voxel of a volume, or regions, which are classes that may overlap.

    Args:
        activation: How the network's numbers are read: regions are outputs of a sigmoid without background.
        classes: Names by label value, background (0) left out.
        label_classes: Names or values of labels that make up each class, by name; None in models of medssl before
            it knew them, whose labels had the values of `classes`.
        label_ignore: Names or values of labels that count for nothing.
        tile_size: Size of the sliding window, in voxels of the preprocessed grid.
        overlap: Fraction shared by neighbouring tiles.
        mirror_axes: Answers are averaged over the flips along these axes.
        largest: Classes of which only the largest connected part counts, as it paid on the validation images; None
            where nobody asked.
        nsd_tolerance_mm: The recipe's tolerance, so that evaluation of the model needs no recipe.
        lesions: The recipe's rule for lesions, if they are scored one by one.
    """

    kind: Literal["masks"] = "masks"
    activation: Activation = "softmax"
    classes: Names
    label_classes: dict[str, Members] | None = None
    label_ignore: tuple[Member, ...] = ()
    tile_size: Size
    overlap: Annotated[float, Field(ge=0, lt=1)]
    mirror_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = ()
    largest: LargestParts | None = None
    nsd_tolerance_mm: PositiveFloat
    lesions: LesionRule | None = None

    @field_validator("classes")
    @classmethod
    def _without_gaps(cls, classes: dict[int, str]) -> dict[int, str]:
        if sorted(classes) != list(range(1, len(classes) + 1)):
            raise ValueError("label values must be 1, 2, 3 ... without gaps")
        return classes

    @model_validator(mode="after")
    def _read_as_learnt(self) -> Self:
        if self.activation != self.wanted.activation:
            raise ValueError(f"the activation of these classes is {self.wanted.activation}")
        return self

    @model_validator(mode="after")
    def _largest_of_its_classes(self) -> Self:
        if self.largest is not None and not set(self.largest.classes) <= set(self.words):
            raise ValueError("largest is of the classes")
        return self

    @property
    def are_regions(self) -> bool:
        """Whether the answer is a mask for each class; else it is one label map."""
        return self.activation == "sigmoid"

    @property
    def wanted(self) -> WantedClasses:
        """Which labels of a cache make up which class, in the order of the network's outputs."""
        known = self.label_classes or {}
        ordered = sorted(self.classes.items())
        return WantedClasses({name: known.get(name, (name, value)) for value, name in ordered}, self.label_ignore)

    @property
    def words(self) -> tuple[str, ...]:
        """What the model can say."""
        return tuple(name for _, name in sorted(self.classes.items()))

    def takes_flat(self, preprocessing: Preprocessing) -> bool:
        """Whether it is for pictures and projections; else it is for volumes."""
        return False

    def call_size(self, preprocessing: Preprocessing) -> Size:
        """Voxels that one call of the network sees at most."""
        return self.tile_size

    def inputs(self, preprocessing: Preprocessing, in_channels: int) -> tuple[Port, ...]:
        """What the network takes."""
        return (Port(name="image", sizes=("batch", in_channels, *self.tile_size)),)

    def outputs(self, preprocessing: Preprocessing) -> tuple[Port, ...]:
        """What the network gives."""
        return (Port(name="logits", sizes=("batch", len(self.classes) + (not self.are_regions), *self.tile_size)),)


class _NamedHead(Strict):
    """What heads with a score for each name have in common."""

    names: Annotated[tuple[ClassWord, ...], Field(min_length=1, max_length=1000)]
    label_classes: dict[str, Literal["any", "none"] | tuple[str, ...]]
    operating_points: dict[str, OperatingPoint]

    @model_validator(mode="after")
    def _each_name_once(self) -> Self:
        if len(set(self.names)) < len(self.names):
            raise ValueError("names must differ")
        for of_names in (self.label_classes, self.operating_points):
            if of_names.keys() != set(self.names):
                raise ValueError("label_classes and operating_points are of every name")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """What the model can say."""
        return self.names

    @property
    def classes(self) -> dict[int, str]:
        """Names by output of the network."""
        return dict(enumerate(self.names))

    def is_yes(self, name: str, score: float) -> bool:
        """Whether a score reaches the operating point of a name."""
        return score >= self.operating_points[name].threshold


class FindingsHead(_NamedHead):
    """A probability for each finding of a whole image.

    Args:
        names: Names of the findings, in the order of the network's outputs.
        is_exclusive: Every image is of exactly one of them, so that probabilities sum to 1.
        label_classes: Findings of a cache that make it up, by name.
        operating_points: Operating points by name.
        num_slices: A volume is shown as a stack of at most so many of its slices; None for images that are shown whole.
    """

    kind: Literal["findings"] = "findings"
    is_exclusive: bool = False
    num_slices: PositiveInt | None = None

    def takes_flat(self, preprocessing: Preprocessing) -> bool:
        """Whether it is for pictures and projections; else it is for volumes."""
        return len(fit_of(preprocessing)) == 2 and self.num_slices is None

    def call_size(self, preprocessing: Preprocessing) -> Size:
        """Voxels that one call of the network sees at most."""
        x, y, *rest = fit_of(preprocessing)
        return x, y, rest[0] if rest else self.num_slices or 1

    def inputs(self, preprocessing: Preprocessing, in_channels: int) -> tuple[Port, ...]:
        """What the network takes."""
        size = (*fit_of(preprocessing), *(() if self.num_slices is None else (self.num_slices,)))
        image = Port(name="image", sizes=("batch", in_channels, *size))
        if self.num_slices is None:
            return (image,)
        slices = ("batch", self.num_slices)
        return image, Port(name="is_present", sizes=slices, is_bool=True), Port(name="positions_mm", sizes=slices)

    def outputs(self, preprocessing: Preprocessing) -> tuple[Port, ...]:
        """What the network gives."""
        return (Port(name="logits", sizes=("batch", len(self.names))),)


class BoxesHead(_NamedHead):
    """Boxes with scores on a picture, or in a volume that is searched tile by tile.

    Args:
        names: Names of the classes, in the order of the network's outputs.
        label_classes: Names of a cache's boxes that are of the class, by name.
        operating_points: Operating points by name.
        strides: Voxels between neighbouring places of each map of the network, along all axes or along each.
        min_score: Boxes below it are dropped.
        max_overlap: Largest overlap (intersection over union) of two boxes of a class; beyond it the better one stays.
        max_boxes: Largest number of boxes of an image; of a volume also of each tile.
        match_overlap: Least intersection over union at which a box counts as found, in evaluation.
        tile_size: Size of the sliding window over a volume, in voxels of the preprocessed grid; None of pictures.
        overlap: Fraction shared by neighbouring tiles.
        label_ignore: Names of a cache's boxes that count for nothing.
        min_readers: Boxes that fewer readers have marked count for nothing.
    """

    kind: Literal["boxes"] = "boxes"
    strides: Annotated[tuple[PositiveInt | StridesPerAxis, ...], Field(min_length=1, max_length=16)]
    min_score: Probability
    max_overlap: Probability
    max_boxes: PositiveInt
    match_overlap: Annotated[float, Field(gt=0, lt=1)]
    tile_size: Size | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_ignore: tuple[str, ...] = ()
    min_readers: PositiveInt = 1

    @model_validator(mode="after")
    def _strides_of_every_axis(self) -> Self:
        dims = 2 if self.tile_size is None else 3
        if any(len(stride) != dims for stride in self.strides if isinstance(stride, tuple)):
            raise ValueError(f"strides are of {dims} axes")
        return self

    def takes_flat(self, preprocessing: Preprocessing) -> bool:
        """Whether it is for pictures and projections; else it is for volumes."""
        return self.tile_size is None

    def call_size(self, preprocessing: Preprocessing) -> Size:
        """Voxels that one call of the network sees at most."""
        if self.tile_size is not None:
            return self.tile_size
        x, y = fit_of(preprocessing)[:2]
        return x, y, 1

    def inputs(self, preprocessing: Preprocessing, in_channels: int) -> tuple[Port, ...]:
        """What the network takes."""
        size = self.tile_size or fit_of(preprocessing)
        return (Port(name="image", sizes=("batch", in_channels, *size)),)

    def outputs(self, preprocessing: Preprocessing) -> tuple[Port, ...]:
        """What the network gives: of every place the logits of the classes and of the box, and its edges' distances."""
        dims = 2 if self.tile_size is None else 3
        num_places = self.num_places(preprocessing)
        return (Port(name="answers", sizes=("batch", num_places, len(self.names) + 1 + 2 * dims)),)

    def num_places(self, preprocessing: Preprocessing) -> int:
        """Places of all maps of one call of the network."""
        size = self.tile_size or fit_of(preprocessing)[:2]
        number = 0
        for stride in self.strides:
            steps = stride if isinstance(stride, tuple) else (stride,) * len(size)
            number += math.prod(-(-extent // step) for extent, step in zip(size, steps, strict=True))
        return number

    def decoding_bytes(self, preprocessing: Preprocessing) -> int:
        """Memory that reading one call's answers takes: of each place its numbers three times, and where it lies."""
        return 4 * (3 * (len(self.names) + 7) + 16) * self.num_places(preprocessing)


class EmbeddingsHead(Strict):
    """A vector for each slice of a volume, and one for the volume.

    Args:
        dim: Elements of a vector.
    """

    kind: Literal["embeddings"] = "embeddings"
    dim: PositiveInt

    @property
    def words(self) -> tuple[str, ...]:
        """What the model can say."""
        return (f"embeddings of {self.dim} elements",)

    def takes_flat(self, preprocessing: Preprocessing) -> bool:
        """Whether it is for pictures and projections; else it is for volumes."""
        return False

    def call_size(self, preprocessing: Preprocessing) -> Size:
        """Voxels that one call of the network sees at most, of as many slices as export compares."""
        x, y = fit_of(preprocessing)[:2]
        return x, y, MOST_SLICES

    def inputs(self, preprocessing: Preprocessing, in_channels: int) -> tuple[Port, ...]:
        """What the network takes; false in `is_present` where a slice is padding."""
        free = ("volumes", "slices")
        return (
            Port(name="images", sizes=(*free, in_channels, *fit_of(preprocessing)[:2])),
            Port(name="is_present", sizes=free, is_bool=True),
            Port(name="positions_mm", sizes=free),
        )

    def outputs(self, preprocessing: Preprocessing) -> tuple[Port, ...]:
        """What the network gives."""
        return (
            Port(name="slice_embeddings", sizes=("volumes", "slices", self.dim)),
            Port(name="volume_embedding", sizes=("volumes", self.dim)),
        )


Head = Annotated[MasksHead | FindingsHead | BoxesHead | EmbeddingsHead, Field(discriminator="kind")]
MOST_SLICES: Final = 64


def fit_of(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The size that images are fitted to.

    Raises:
        ValueError: They are not.
    """
    if preprocessing.fit is None:
        raise ValueError("images of this head are fitted to a size")
    return preprocessing.fit


def differing(expected: Strict, found: object, prefix: str = "") -> Iterator[str]:
    """Names of the fields in which something differs from what is expected."""
    for name in type(expected).model_fields:
        if getattr(expected, name) != getattr(found, name, None):
            yield f"{prefix}{name}"
