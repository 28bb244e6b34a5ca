"""From a network's logits on tiles to a label map, or to masks of regions, on the image's own grid.

Shapes: K classes or regions, X Y Z space.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import Activation
from medssl_cli.heads import LargestParts
from medssl_cli.imaging.components import only_largest
from medssl_cli.imaging.placement import ChannelImages
from medssl_cli.imaging.segment import segment_volume
from medssl_cli.imaging.tiling import Predict
from medssl_cli.imaging.volume import Volume

if TYPE_CHECKING:
    from medssl_cli.recipe import TaskRecipe

Segment = Callable[[Volume | ChannelImages], NDArray[np.uint8]]
"""Images of an example to a label map `[X, Y, Z]`, or to masks `[K, X, Y, Z]` of 0 and 1, on the first image's grid."""
Finish = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""An answer to the answer that is given."""


def segmenter(
    predict: Predict,
    recipe: "TaskRecipe",
    activation: Activation,
    *,
    is_mirrored: bool,
    finish: Finish = lambda answer: answer,
) -> Segment:
    """A network as a function of whole images.

    Args:
        predict: The network on tiles, `[B, C, *tile]` to logits `[B, K, *tile]`.
        recipe: That it was trained by.
        activation: What its outputs mean.
        is_mirrored: Average over the flips of `inference.mirror_axes`.
        finish: What happens to an answer in the end; see `finished`.
    """

    def segment(images: Volume | ChannelImages) -> NDArray[np.uint8]:
        answer = segment_volume(
            predict,
            images,
            preprocessing=recipe.data.preprocessing,
            tile=recipe.tile_size,
            overlap=recipe.inference.overlap,
            mirror_axes=recipe.inference.mirror_axes if is_mirrored else (),
            activation=activation,
        )
        return finish(answer)

    return segment


def finished(answer: NDArray[np.uint8], largest: LargestParts | None, classes: Mapping[int, str]) -> NDArray[np.uint8]:
    """An answer as it is given: only the largest connected part of what is said so.

    Args:
        answer: Label map `[X, Y, Z]`, or masks of regions `[K, X, Y, Z]`.
        largest: As learnt.
        classes: Names by place, from 1 on.
    """
    if largest is None or largest == LargestParts():
        return answer
    places = [place for place, name in classes.items() if name in largest.classes]
    return only_largest(answer, foreground=largest.foreground, places=places)


def structure(answer: NDArray[np.uint8], place: int) -> NDArray[np.bool_]:
    """The mask `[X, Y, Z]` of one class.

    Args:
        answer: Label map `[X, Y, Z]`, or masks of regions `[K, X, Y, Z]`.
        place: Place of the class, from 1 on.
    """
    found: NDArray[np.bool_] = answer == place if answer.ndim == 3 else answer[place - 1] == 1
    return found


def painted(answer: NDArray[np.uint8], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A label map `[X, Y, Z]` to look at: where regions overlap, that is seen which is smaller in another answer.

    Args:
        answer: Label map, which is returned as it is, or masks of regions `[K, X, Y, Z]`.
        like: The other answer, of the same shape.
    """
    if answer.ndim == 3:
        return answer
    seen = np.zeros(answer.shape[1:], dtype=np.uint8)
    for number in np.argsort([-np.count_nonzero(mask == 1) for mask in like], kind="stable"):
        seen[answer[number] == 1] = number + 1
    return seen
