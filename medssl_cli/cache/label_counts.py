"""What the labels of a cache are called and how often each occurs: what a recipe has to choose from."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.splits import held_out_patients

SPLIT_SEED = 0
Kind = Literal["class", "region", "box", "finding"]


@dataclass(frozen=True)
class LabelCount:
    """One name in one set.

    Args:
        label_set: Name of the set.
        kind: Kind of label.
        name: What it is called; a class of several values has them behind its name.
        num_images: That show it.
        num_patients: Number of patients of these images.
        number: Voxels of a class or region, boxes, or images in which a finding is known to be absent.
    """

    label_set: str
    kind: Kind
    name: str
    num_images: int
    num_patients: int
    number: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """The three numbers."""
        return self.num_images, self.num_patients, self.number


@dataclass(frozen=True)
class LabelCounts:
    """All names, and how many patients are labelled, held out and left to train with."""

    rows: tuple[LabelCount, ...]
    patients: dict[str, int]


def count_labels(records: Iterable[ItemRecord]) -> LabelCounts:
    """Count every class, region, box and finding of a cache."""
    images: dict[tuple[str, Kind, str], int] = defaultdict(int)
    people: dict[tuple[str, Kind, str], set[str]] = defaultdict(set)
    numbers: dict[tuple[str, Kind, str], int] = defaultdict(int)
    everything = list(records)
    for record in everything:
        for key, number, is_shown in _labels_of(record):
            images[key] += is_shown
            people[key] |= {record.patient_key} if is_shown else set()
            numbers[key] += number
    rows = tuple(LabelCount(*key, images[key], len(people[key]), numbers[key]) for key in sorted(numbers))
    labelled = {record.patient_key for record in everything if record.labels or record.annotation_sets}
    test = held_out_patients(everything, SPLIT_SEED)
    return LabelCounts(
        rows, {"labelled": len(labelled), "held out for testing": len(test), "to train with": len(labelled - test)}
    )


def _labels_of(record: ItemRecord) -> Iterable[tuple[tuple[str, Kind, str], int, bool]]:
    """Key, number, and whether the image shows it."""
    for name, label in record.labels.items():
        by_class: dict[str, int] = defaultdict(int)
        for value, title in label.classes.items():
            by_class[title] += label.voxels_per_class.get(value, 0)
        for title, number in by_class.items():
            yield (name, "class", title), number, number > 0
        for title, values in label.regions.items():
            number = sum(label.voxels_per_class.get(value, 0) for value in values)
            yield (name, "region", title), number, number > 0
    for name, boxes in record.boxes.items():
        for title in {box.name for box in boxes}:
            yield (name, "box", title), sum(box.name == title for box in boxes), True
    for name, findings in record.findings.items():
        for title, probability in findings.items():
            yield (name, "finding", title), int(probability == 0), probability > 0
