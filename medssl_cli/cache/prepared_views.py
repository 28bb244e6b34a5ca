"""Where prepared views lie: files named by what is prepared, and in a folder for each geometry.

Their names begin with the id of the item that they show, so that they go when that item is forgotten.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.files import sha256_json
from medssl_cli.imaging.geometry import Shape
from medssl_cli.preprocessing import Preprocessing

VERSION: Final = 2  # 1: images of whole numbers were rounded


@dataclass(frozen=True)
class PreparedView:
    """One example as a recipe wants it, with one of its label maps or none.

    Args:
        cache_root: Folder of the cache.
        item_ids: Ids of the images, one per channel.
        shape: Size of the first; it decides how much there is to do.
        preprocessing: The recipe's.
        label_set: Name of the label map.
        label_item: Image that it belongs to.
        label_sha256: Its digest.
    """

    cache_root: Path
    item_ids: tuple[str, ...]
    shape: Shape
    preprocessing: Preprocessing
    label_set: str | None
    label_item: str = ""
    label_sha256: str = ""

    @property
    def item_id(self) -> str:
        """Id of the first channel's image."""
        return self.item_ids[0]

    @property
    def description(self) -> Path:
        """What makes the others count: shape, affine, and the intensity rule of each channel."""
        label = "" if self.label_set is None else f"-{self._label_tag}"
        return self._folder / f"{self._name}-{_intensity_tag(self.preprocessing)}{label}.json"

    @property
    def label_path(self) -> Path:
        """Voxels of the label map."""
        return self._folder / f"{self._name}-{self._label_tag}.b2nd"

    @property
    def points_path(self) -> Path:
        """Some voxels of each of its values."""
        return self._folder / f"{self._name}-{self._label_tag}.npz"

    def image_path(self, number: int) -> Path:
        """Voxels of a channel."""
        item_id = self.item_ids[number]
        return self._folder.with_name(item_id[:2]) / f"{item_id}{self._company}.b2nd"

    @property
    def _folder(self) -> Path:
        return self.cache_root / "prepared" / _geometry_tag(self.preprocessing) / self.item_id[:2]

    @property
    def _name(self) -> str:
        return self.item_id + self._company

    @property
    def _company(self) -> str:
        """What tells views of an example from those of others that its images are in; nothing of an image alone."""
        return "" if len(self.item_ids) == 1 else "-" + sha256_json(list(self.item_ids))[:12]

    @property
    def _label_tag(self) -> str:
        """A label map by name and content, so that a replaced label is prepared anew."""
        return f"{self.label_set}-{self.label_sha256[:12]}"


@lru_cache(maxsize=8)
def _geometry_tag(preprocessing: Preprocessing) -> str:
    """Tag of everything that decides about the grid; what a recipe does not ask for leaves it as it was before."""
    geometry: dict[str, Any] = {
        "orientation": preprocessing.orientation,
        "spacing_mm": preprocessing.spacing_mm,
        "version": VERSION,
    }
    if preprocessing.fit is not None:
        geometry["fit"] = preprocessing.fit
    if preprocessing.foreground_crop:
        geometry["foreground_crop"] = True
    if preprocessing.stretch is not None:
        geometry["stretch"] = preprocessing.stretch
    if preprocessing.foreground_above is not None:
        geometry["foreground_above"] = preprocessing.foreground_above
    return sha256_json(geometry)[:16]


@lru_cache(maxsize=8)
def _intensity_tag(preprocessing: Preprocessing) -> str:
    documents = []
    for rule in preprocessing.rules:
        document: dict[str, Any] = {"window": rule.window_hu, "zscore": rule.zscore}
        if rule.percentiles is not None:
            document["percentiles"] = rule.percentiles
        documents.append(document)
    return sha256_json(documents[0] if len(documents) == 1 else documents)[:8]
