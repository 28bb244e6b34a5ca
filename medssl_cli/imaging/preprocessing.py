"""What a recipe's `Preprocessing` makes of an example: the input of a network, for every kind of image.

Two steps: geometry (`imaging.placement`) and intensity (`intensity_of`, elementwise). The cache keeps the result of the
first; the second is applied to crops, tiles, slices and whole images alike.

Shapes: C channels, X Y Z space.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.placement import ChannelImages, GridPlacement, on_one_grid, placement_of
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import IntensityRule, Preprocessing


@dataclass(frozen=True)
class Intensity:
    """An elementwise rule: clip to [low, high], subtract `shift`, multiply by `scale`."""

    low: float
    high: float
    shift: float
    scale: float

    def apply(self, voxels: NDArray[np.generic], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Network input of the same shape, float32, in an array of its own or the one given."""
        values = np.empty(voxels.shape, np.float32) if out is None else out
        values[...] = voxels
        np.clip(values, np.float32(self.low), np.float32(self.high), out=values)
        values -= np.float32(self.shift)
        values *= np.float32(self.scale)
        return values


@dataclass(frozen=True)
class NetworkInput:
    """What a network sees of an example.

    Args:
        voxels: `[C, X, Y, Z]` float32.
        placement: Where they lie in the first channel's image.
    """

    voxels: NDArray[np.float32]
    placement: GridPlacement


def network_input(example: ChannelImages, preprocessing: Preprocessing) -> NetworkInput:
    """Geometry and intensity together.

    Args:
        example: One image `[1, X, Y, Z]` per channel of the recipe, in its order and in one frame of reference.
        preprocessing: The recipe's, or the one that a model carries.

    Raises:
        ValueError: The example has not the recipe's channels.
    """
    if len(example) != len(preprocessing.rules):
        raise ValueError(f"the example has {len(example)} channels, the recipe {len(preprocessing.rules)}")
    images = on_one_grid(example)
    placement = placement_of(images, preprocessing)
    seen = np.empty((len(images), *placement.shape), dtype=np.float32)
    for image, rule, out in zip(images, preprocessing.rules, seen, strict=True):
        voxels, intensity = on_grid(image.voxels, placement, rule)
        intensity.apply(voxels, out[np.newaxis])
    return NetworkInput(seen, placement)


def on_grid(
    voxels: NDArray[np.generic], placement: GridPlacement, rule: IntensityRule
) -> tuple[NDArray[np.generic], Intensity]:
    """One channel on the grid that the network sees, in its own values, and what is to be done with them.

    The rule is resolved before an image is resized to fit: a size is no property of what it shows. The padding has the
    image's lowest value.

    Args:
        voxels: `[1, X, Y, Z]` as they came.
        placement: Placement of the grid.
        rule: Rule of the channel.
    """
    sampled = placement.sampled(voxels)
    return placement.filled(sampled, outside=sampled.min()), intensity_of(sampled, rule)


def intensity_of(voxels: NDArray[np.generic], rule: IntensityRule) -> Intensity:
    """The elementwise rule for one image.

    Args:
        voxels: `[1, X, Y, Z]`; only their statistics are used.
        rule: A fixed window; or z-scores or percentiles over the non-zero voxels (all voxels if none is zero).
    """
    if rule.window_hu is not None:
        low, high = rule.window_hu
        return Intensity(low, high, low, 1 / (high - low))
    values = voxels[voxels != 0]
    sample = values if values.size else voxels
    if rule.percentiles is not None:
        low, high = (float(value) for value in np.percentile(sample, rule.percentiles))
        return Intensity(low, high, low, 1 / max(high - low, 1e-6))
    mean, std = float(sample.mean(dtype=np.float64)), float(sample.std(dtype=np.float64))
    return Intensity(float(voxels.min()), float(voxels.max()), mean, 1 / max(std, 1e-6))


def channel_images(images: Volume | ChannelImages) -> ChannelImages:
    """Images of an example, of which a single one needs no sequence."""
    return (images,) if isinstance(images, Volume) else images
