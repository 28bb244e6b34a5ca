"""What tasks that see images whole plan alike: random changes of pictures, and how often a set is gone through."""

import math
from collections.abc import Sequence
from typing import Final

from medssl_cli.plan.draft import Pins, PlannedValue
from medssl_cli.plan.fingerprint import Fingerprint

SIDE_WORDS: Final = frozenset({"left", "right", "l", "r", "lh", "rh"})
LEAST_STEPS: Final = 400


def is_lateral(name: str) -> bool:
    """Whether a name says on which side of the body something is."""
    words = name.lower().replace("-", "_").replace(" ", "_").split("_")
    return bool(SIDE_WORDS & set(words))


def flip_values(pins: Pins, lateral: Sequence[str]) -> dict[str, PlannedValue]:
    """Random mirror images, such that they go with what is given of them and of mirroring at inference.

    Args:
        pins: What is given.
        lateral: Names of classes on one side of the body, which left and right would confuse.
    """
    wanted = {0} | set(pins.get("inference.mirror_axes", ()))
    axes = sorted(pins.get("augmentation.flip_axes", wanted - {0} if lateral else wanted))
    is_confusing = bool(lateral) and 0 in axes
    prob = pins.get("augmentation.flip_prob", 0.5 if axes and not is_confusing else 0.0)
    reason = f"{lateral[0]} is on one side" if lateral else "mirror images of left and right"
    if pins.get("inference.mirror_axes"):
        reason += "; inference averages over what is mirrored here"
    return {
        "augmentation.flip_prob": PlannedValue(prob, reason),
        "augmentation.flip_axes": PlannedValue(axes, "0 is left and right"),
    }


def whole_augmentation(
    pins: Pins, fingerprint: Fingerprint, *, rotate_degrees: float, scale_range: Sequence[float]
) -> dict[str, PlannedValue]:
    """Random changes of whole images.

    Args:
        pins: What is given.
        fingerprint: Fingerprint of the images; classes with a side are not mirrored.
        rotate_degrees: Largest rotation in degrees.
        scale_range: Range of sizes.
    """
    sides = sorted(each.name for each in fingerprint.classes if is_lateral(each.name))
    askew = (
        "patients stand a little askew" if rotate_degrees else "a turned box becomes the larger upright one around it"
    )
    return {
        **flip_values(pins, sides),
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
