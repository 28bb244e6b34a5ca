"""What tasks that see images whole plan alike: random changes of pictures, and how often a set is gone through."""

import math
from collections.abc import Sequence
from typing import Final

from medssl_cli.plan.draft import PlannedValue
from medssl_cli.plan.fingerprint import Fingerprint

SIDE_WORDS: Final = frozenset({"left", "right", "l", "r", "lh", "rh"})
LEAST_STEPS: Final = 400


def is_lateral(name: str) -> bool:
    """Whether a name says on which side of the body something is."""
    words = name.lower().replace("-", "_").replace(" ", "_").split("_")
    return bool(SIDE_WORDS & set(words))


def whole_augmentation(
    fingerprint: Fingerprint, *, rotate_degrees: float, scale_range: Sequence[float]
) -> dict[str, PlannedValue]:
    """Random changes of whole images.

    Args:
        fingerprint: Fingerprint of the images; classes with a side are not mirrored.
        rotate_degrees: Largest rotation in degrees.
        scale_range: Range of sizes.
    """
    sides = sorted(each.name for each in fingerprint.classes if is_lateral(each.name))
    flips = f"{sides[0]} is on one side: no mirror images" if sides else "mirror images of left and right"
    askew = (
        "patients stand a little askew" if rotate_degrees else "a turned box becomes the larger upright one around it"
    )
    return {
        "augmentation.flip_prob": PlannedValue(0.0 if sides else 0.5, flips),
        "augmentation.flip_axes": PlannedValue([] if sides else [0], "0 is left and right"),
        "augmentation.affine_prob": PlannedValue(1.0, "of images that turn and scale"),
        "augmentation.rotate_degrees": PlannedValue(rotate_degrees, askew),
        "augmentation.scale_range": PlannedValue(list(scale_range), "of sizes"),
        "augmentation.intensity_scale": PlannedValue(0.15, "contrast"),
        "augmentation.intensity_shift": PlannedValue(0.15, "brightness"),
        "augmentation.gamma_range": PlannedValue([0.8, 1.25], "contrast of dark against bright"),
    }


def steps_of_epochs(num_images: int, batch_size: int, epochs: int) -> int:
    """Steps in which every image is seen so many times, at least some hundred."""
    return max(LEAST_STEPS, math.ceil(epochs * num_images / batch_size))
