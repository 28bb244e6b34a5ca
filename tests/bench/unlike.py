"""How well a model tells images that are unlike those of its training from held-out ones: the AUROC of its distance."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import held_out_patients, shuffled
from medssl_cli.cache.store import Cache
from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.training_images import departures
from medssl_cli.deploy.training_summary import centre_input
from medssl_cli.metrics.ranking import auroc

COLUMNS: Final = ("images", "number", "median distance", "beyond the limit", "out of range", "AUROC")


@dataclass(frozen=True)
class Judged:
    """What a model says of one image.

    Args:
        distance: From the training images.
        is_beyond: It lies farther than the limit.
        is_out_of_range: Spacing, field of view, values or modality are outside of those of the training.
    """

    distance: float
    is_beyond: bool
    is_out_of_range: bool


@dataclass(frozen=True)
class Group:
    """Images of one kind.

    Args:
        name: Name of the kind.
        judged: What the model says of each.
        auroc: How well distances tell them from the held-out images of the training's cache; NaN of those themselves.
    """

    name: str
    judged: Sequence[Judged]
    auroc: float

    def row(self) -> tuple[str, ...]:
        """For the table."""
        return (
            self.name,
            str(len(self.judged)),
            f"{np.median([each.distance for each in self.judged]):.2f}",
            f"{np.mean([each.is_beyond for each in self.judged]):.0%}",
            f"{np.mean([each.is_out_of_range for each in self.judged]):.0%}",
            "" if np.isnan(self.auroc) else f"{self.auroc:.3f}",
        )

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        told = [vars(each) for each in self.judged]
        return {"name": self.name, "auroc": None if np.isnan(self.auroc) else self.auroc, "images": told}


def bench_unlike(model: Path, inside: Path, outside: Sequence[Path], *, most: int) -> Iterator[Group]:
    """Judge held-out images of the training's cache, then every other cache, by modality.

    Args:
        model: An exported model that knows its training images.
        inside: The cache that it was trained on; its test patients are taken, whom the model has not seen.
        outside: Caches of other images.
        most: Images of each kind at most.

    Raises:
        UsageError: `E_USAGE`, the model gives no embeddings.
        NothingUsableError: `E_TOO_FEW_PATIENTS`, the cache has no patient whom the model has not seen.
    """
    opened = OnnxModel(model, "cpu")
    with contextlib.closing(opened):
        if opened.bundle.embeddings is None:
            raise UsageError("E_USAGE", f"{model.name} gives no embeddings", hint="export it again, of more patients")
        cache = Cache.open(inside)
        own = _judged(opened, cache, _unseen(cache.records(), opened.bundle), most)
        if not own:
            raise NothingUsableError("E_TOO_FEW_PATIENTS", f"{inside.name} has no patient whom the model has not seen")
        yield Group(f"{inside.name}, held out", own, float("nan"))
        for folder in outside:
            other = Cache.open(folder)
            records = other.records()
            for modality in sorted({record.modality for record in records}):
                found = _judged(opened, other, [one for one in records if one.modality == modality], most)
                if found:
                    yield Group(f"{folder.name}, {modality}", found, _auroc(own, found))


def _unseen(records: Sequence[ItemRecord], bundle: Bundle) -> list[ItemRecord]:
    """Images of test patients, none of whom the model has seen."""
    test = held_out_patients(records, bundle.split_seed)
    return [one for one in records if one.patient_key in test and not bundle.has_seen(one.patient_key)]


def _judged(model: OnnxModel, cache: Cache, records: Sequence[ItemRecord], most: int) -> list[Judged]:
    """A fixed choice of images; flat ones for models of pictures, others for models of volumes."""
    by_id = {one.item_id: one for one in records if (one.shape[2] == 1) == model.bundle.takes_flat}
    return [_judge(model, cache, by_id[item]) for item in shuffled(sorted(by_id), 0)[:most]]


def _judge(model: OnnxModel, cache: Cache, record: ItemRecord) -> Judged:
    bundle, image = model.bundle, cache.read_image(record)
    assert bundle.training is not None
    assert bundle.embeddings is not None
    inputs = centre_input(image, bundle.preprocessing, bundle.head)  # what `infer` takes out of its calls
    distance = bundle.embeddings.distance(model.compute(*inputs)[-1][0])
    has_spacing = record.spacing_kind != "unknown"
    told = departures(bundle.training, [image], bundle.preprocessing, has_spacing=has_spacing)
    return Judged(distance, distance > bundle.embeddings.limit, bool(told))


def _auroc(inside: Sequence[Judged], outside: Sequence[Judged]) -> float:
    scores: NDArray[np.float64] = np.array([each.distance for each in (*inside, *outside)])
    is_other = np.arange(len(scores)) >= len(inside)
    return float(auroc(scores, is_other))
