"""What an ingest finds, booked and sorted by kind. Readers are imported where there is something to read."""

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.engine.ingest.report import Ledger
from medssl_cli.formats.discover import Found, classify
from medssl_cli.formats.layouts import DatasetJson, read_dataset_json
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Source

if TYPE_CHECKING:
    from medssl_cli.formats.labels import AnnotationKind

VOXEL_KINDS: Final = ("nifti", "nrrd", "metaimage", "picture")
TEXT_KINDS: Final = ("json", "csv", "xml")


@dataclass
class Inputs:
    """Sources that have to be read, and files that have not changed.

    Args:
        ledger: Opens an account for each source.
        policy: What is tried.
        max_archive_bytes: What one archive may unpack to.
        sources: To be read, by kind.
        unchanged: Files that were not opened.
        datasets: Descriptions of data sets.
        redescribed: Folders of those that are new or have changed.
        annotations: Labels in files of their own kind.
        unread: Files that could not be opened or are of no known kind, with their codes: damaged slices may be among
            them.
    """

    ledger: Ledger
    policy: Policy
    max_archive_bytes: int
    sources: dict[str, list[Source]] = field(default_factory=lambda: defaultdict(list))
    unchanged: list[Found] = field(default_factory=list)
    datasets: list[DatasetJson] = field(default_factory=list)
    redescribed: set[Path] = field(default_factory=set)
    annotations: "dict[Source, AnnotationKind]" = field(default_factory=dict)
    unread: list[tuple[Source, str]] = field(default_factory=list)

    def has_news(self, settled: Container[Source]) -> bool:
        """Whether there is anything to read but unchanged files that are settled."""
        is_new = bool(self.sources or self.redescribed or self.annotations)
        return is_new or not all(found.source in settled for found in self.unchanged)

    def add(self, found: Found) -> None:
        """Book one source; what is not read is settled at once."""
        self.ledger.open(found)
        is_description = found.source.name == "dataset.json"
        if found.kind == "known":
            self.unchanged.append(found)
            if is_description and (dataset := read_dataset_json(found.source)):
                self.datasets.append(dataset)
        elif found.kind == "other":
            self.ledger.refuse([found.source], found.code, "")
            if found.code.startswith("E_") or found.code == "S_NOT_AN_IMAGE":
                self.unread.append((found.source, found.code))
        elif is_description and (dataset := read_dataset_json(found.source)):
            self.datasets.append(dataset)
            self.redescribed.add(dataset.folder)
            self.ledger.refuse([found.source], "S_SIDECAR", "")
        elif found.kind in TEXT_KINDS:
            self._add_text(found)
        else:
            self.sources[found.kind].append(found.source)

    def _add_text(self, found: Found) -> None:
        from medssl_cli.formats.labels.recognise import annotation_kind

        if kind := annotation_kind(found.source, found.kind):
            self.annotations[found.source] = kind
        else:
            self.ledger.refuse([found.source], "S_SIDECAR", "")

    def open_again(self, settled: Container[Source]) -> None:
        """Look at unchanged files after all, but for those that are settled."""
        unchanged, self.unchanged = self.unchanged, []
        for found in unchanged:
            if not isinstance(found.source, Path) or found.source in settled:
                self.unchanged.append(found)
                continue
            self.ledger.withdraw(found)
            for again in classify(found.source, found.root, self.policy, max_archive_bytes=self.max_archive_bytes):
                self.add(again)
