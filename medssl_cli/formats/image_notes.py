"""Notes about an image that any reader may have given: what its voxels, and what it does not say, give rise to."""

from typing import Final

from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.imaging.label_like import FEW, MOST, is_black_and_white, is_label_like

HU_RANGE: Final = (-8192, 32767)


def may_be_label_map(image: LoadedImage, *, at_most: int = MOST) -> bool:
    """Whether nothing but its name says that an image is no label map.

    Args:
        image: As it was read.
        at_most: Different values that a label map has.
    """
    voxels = image.volume.voxels[0]
    is_blurred = "W_LOSSY" in image.warnings and is_black_and_white(voxels)
    return is_blurred or is_label_like(voxels, at_most=at_most)


def notes_about(image: LoadedImage) -> tuple[str, ...]:
    """`W_` codes of an image whose modality and patient are known, or are not to be had.

    A file that states its modality has a reader of its own that judges its values.
    """
    volume = image.volume
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    is_own_judge = image.states_modality
    is_implausible = low < HU_RANGE[0] or high > HU_RANGE[1] or low >= 0
    conditions = {
        "W_LABEL_LIKE": not is_own_judge and low != high and may_be_label_map(image, at_most=FEW),
        "W_CONSTANT_IMAGE": low == high,
        "W_HU_IMPLAUSIBLE": not is_own_judge and volume.units == "HU" and is_implausible,
        "W_UNKNOWN_MODALITY": volume.modality == "unknown",
        "W_NO_PATIENT_KEY": not image.identity.patient,
    }
    return tuple(code for code, holds in conditions.items() if holds)
