"""Places in images that nobody labelled, by where structures lie in labelled ones.

A structure lies at much the same share of the width, depth and height of images of one kind. So crops of unlabelled
images can be drawn around such places as crops of labelled ones are drawn around labelled voxels: then both show the
same. No label of an unlabelled image is looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.imaging.geometry import Shape

MAX_PLACES: Final = 2048
Places = Mapping[int, NDArray[np.float64]]
"""For each class the places of some of its voxels, as shares of the image's sizes, [N, 3] within [0, 1)."""


def places_of_classes(labelled: Sequence[PreparedItem]) -> Places:
    """Where the classes lie in labelled images; of each class some places, equally many of every image."""
    found: dict[int, list[NDArray[np.float64]]] = {}
    most = max(1, MAX_PLACES // max(1, len(labelled)))
    for item in labelled:
        for place, points in item.points.items():
            chosen = points[np.linspace(0, len(points) - 1, min(most, len(points))).astype(int)]
            found.setdefault(place, []).append((chosen + 0.5) / np.array(item.shape))
    return {place: np.concatenate(parts) for place, parts in sorted(found.items())}


def points_at(places: Places, shape: Shape) -> dict[int, NDArray[np.int32]]:
    """The voxels of an image of a shape that lie at places."""
    return {place: np.floor(shares * np.array(shape)).astype(np.int32) for place, shares in places.items()}


class PlacedItems(Sequence[PreparedItem]):
    """Prepared items without labels whose points lie where those of labelled ones do.

    Args:
        items: Prepared without labels.
        places: Places of the classes.
    """

    def __init__(self, items: Sequence[PreparedItem], places: Places) -> None:
        self._items, self._places = items, places

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> PreparedItem:  # type: ignore[override]
        item = self._items[place]
        return replace(item, points=points_at(self._places, item.shape))

    def __iter__(self) -> Iterator[PreparedItem]:
        return map(self.__getitem__, range(len(self)))
