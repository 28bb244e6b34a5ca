"""Sections of recipes that stand for themselves: random changes of images, images without labels, what classes are."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from medssl_cli.base.strict import NonNegativeFloat, PositiveInt, PositiveRange, Probability, Strict

ADDED_LATER: Final = (
    "rotate_prob", "scale_prob", "gamma_prob", "inverted_gamma_prob", "contrast_prob", "contrast_range", "noise_prob",
)  # fmt: skip
"""Keys of an augmentation that recipes need not have."""
_NO_CONTROLS: Final = r"[^\\\x00-\x1f\x7f]"
DicomText = Annotated[str, Field(pattern=rf"^{_NO_CONTROLS}{{1,64}}$")]
"""A short text without backslashes and control characters."""


def _each_once(axes: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(axes)) < len(axes):
        raise ValueError("name each axis once")
    return axes


Axes = Annotated[tuple[Annotated[int, Field(ge=0, le=2)], ...], AfterValidator(_each_once)]


class Augmentation(Strict):
    """Random changes of training crops, applied to whole batches on the device.

    Args:
        quarter_turn_prob: Probability of a rotation in the x-y plane by 90, 180 or 270 degrees; crops with unequal x
            and y are never turned.
        intensity_scale_prob: Probability of a factor of intensities, up to `intensity_scale` from 1.
        intensity_shift_prob: Probability of an addend, up to `intensity_shift`.
        coarse_prob: Probability of coarser voxels, with values in between interpolated.
        coarse_range: How many times wider they are.
        blur_prob: Probability of a blur.
        blur_sigma: Standard deviation of its Gaussian in voxels.
        bias_prob: Probability of a smooth factor, the exponential of a polynomial of third degree in the place.
        bias_strength: Largest coefficient of the polynomial over half a crop.
        affine_axes: Axes along which voxels may move when a crop turns and scales; none lets them move within what the
            network sees at once: [0, 1] for a network of 2D images, else all three.
        rotate_prob: Probability of a rotation, of a crop that `affine_prob` chose.
        scale_prob: Probability of a scaling of such a crop.
        gamma_prob: Probability of a gamma, where `gamma_range` has one.
        inverted_gamma_prob: Probability of a gamma of the inverted image, exponents as in `gamma_range`.
        contrast_prob: Probability of a factor of the distances from the mean, within the range of the image.
        contrast_range: Smallest and largest of these factors.
        noise_prob: Probability of noise, where `noise_std` has some.
    """

    flip_prob: Probability = 0.5
    flip_axes: Axes = (0, 1, 2)
    affine_prob: Probability = 0.0
    affine_axes: Axes | None = None
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    scale_range: PositiveRange = (0.85, 1.2)
    intensity_scale: NonNegativeFloat = 0.1
    intensity_shift: NonNegativeFloat = 0.1
    gamma_range: PositiveRange = (1.0, 1.0)
    noise_std: NonNegativeFloat = 0.0
    quarter_turn_prob: Probability = 0.0
    intensity_scale_prob: Probability = 1.0
    intensity_shift_prob: Probability = 1.0
    coarse_prob: Probability = 0.0
    coarse_range: PositiveRange = (1.0, 2.0)
    blur_prob: Probability = 0.0
    blur_sigma: PositiveRange = (0.5, 1.0)
    bias_prob: Probability = 0.0
    bias_strength: NonNegativeFloat = 0.5
    rotate_prob: Probability = 1.0
    scale_prob: Probability = 1.0
    gamma_prob: Probability = 1.0
    inverted_gamma_prob: Probability = 0.0
    contrast_prob: Probability = 0.0
    contrast_range: PositiveRange = (0.75, 1.25)
    noise_prob: Probability = 1.0

    @model_serializer(mode="wrap")
    def _without_defaults(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that were added later are written only where they say something, so that digests stay."""
        document: dict[str, Any] = default(self)
        fields = type(self).model_fields
        unsaid = {name for name in ADDED_LATER if getattr(self, name) == fields[name].default}
        return {name: value for name, value in document.items() if name not in unsaid}


class UnlabelledImages(BaseModel):
    """How a fine-tuning learns from images without their labels; other keys are the method's own.

    Args:
        method: Its name.
        batch_size: Unlabelled images per step, over all devices; None takes as many as labelled ones.
        momentum: Momentum of the teacher, the running average of the weights; at most t / (t + 20) after t steps.
        keep: Whose weights are validated, kept and exported.
        crops: Places of crops of unlabelled volumes: where structures lie in labelled ones, as `foreground_prob` says,
            or anywhere.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    method: str
    batch_size: PositiveInt | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    keep: Literal["teacher", "student"] = "teacher"
    crops: Literal["as_labels", "anywhere"] = "as_labels"

    @property
    def options(self) -> dict[str, Any]:
        """What is the method's own."""
        return dict(self.model_extra or {})


class ClassCode(Strict):
    """A word of a dictionary, as DICOM objects name things by (PS3.3 section 8).

    Args:
        scheme: Designator of the dictionary: SCT for SNOMED CT, DCM for DICOM's own, 99... for a private one.
        value: Code in the dictionary.
        meaning: Text that people read.
    """

    scheme: Annotated[str, Field(pattern=rf"^{_NO_CONTROLS}{{1,16}}$")]
    value: Annotated[str, Field(pattern=rf"^{_NO_CONTROLS}{{1,16}}$")]
    meaning: DicomText

    @property
    def triple(self) -> tuple[str, str, str]:
        """Value, scheme and meaning."""
        return self.value, self.scheme, self.meaning


class ClassDetails(Strict):
    """What a class is in DICOM objects, and how it is shown.

    Args:
        code: Code of its type; by default its name is looked up (docs/reference/class-codes.md).
        category: Code of its category, given with a code; an anatomical structure by default.
        colour: Colour in objects and previews, such as '#c05a2e'; one of seven by default.
    """

    code: ClassCode | None = None
    category: ClassCode | None = None
    colour: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] | None = None

    @model_validator(mode="after")
    def _category_of_a_code(self) -> Self:
        if self.category is not None and self.code is None:
            raise ValueError("category needs a code")
        return self

    @property
    def rgb(self) -> tuple[int, int, int] | None:
        """Red, green and blue, 0 to 255."""
        if self.colour is None:
            return None
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue


class Algorithm(Strict):
    """What DICOM objects say made them (Algorithm Identification, PS3.3 section 10.16).

    Args:
        name: Name of the algorithm.
        version: Version of it; that of medssl by default.
        family: Code of its family; artificial intelligence by default.
        source: Who made it; left out by default.
    """

    name: DicomText
    version: DicomText | None = None
    family: ClassCode | None = None
    source: DicomText | None = None
