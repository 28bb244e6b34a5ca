"""What an ingest finds, reported and sorted by kind. Readers are imported where there is something to read."""

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.formats.dataset_json import DatasetJson, is_description, read_dataset_json
from medssl_cli.formats.discover import Found, classify
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Source
from medssl_cli.ingest.report import ReportBuilder

if TYPE_CHECKING:
    from medssl_cli.formats.labels import AnnotationKind

TEXT_KINDS: Final = ("json", "csv", "xml")


@dataclass
class Inputs:
    """Sources that have to be read, and files that have not changed.

    Args:
        builder: Opens an account for each source.
        policy: What is tried.
        max_archive_bytes: What one archive may unpack to.
        sources: Sources to be read, by kind.
        unchanged: Files that were not opened.
        datasets: Descriptions of data sets.
        redescribed: Folders of those that are new or have changed.
        annotations: Labels in files of their own kind.
        named: Those that the user has named themselves: they must label something.
        unread: Files that could not be opened or are of no known kind, with their codes: damaged slices may be among
            them.
    """

    builder: ReportBuilder
    policy: Policy
    max_archive_bytes: int
    sources: dict[str, list[Source]] = field(default_factory=lambda: defaultdict(list))
    unchanged: list[Found] = field(default_factory=list)
    datasets: list[DatasetJson] = field(default_factory=list)
    redescribed: set[Path] = field(default_factory=set)
    annotations: "dict[Source, AnnotationKind]" = field(default_factory=dict)
    named: set[Source] = field(default_factory=set)
    unread: list[tuple[Source, str]] = field(default_factory=list)

    @property
    def files_of_images(self) -> list[Source]:
        """Files to be read that hold whole images."""
        from medssl_cli.formats.table import is_file_of_images

        return [source for kind in sorted(filter(is_file_of_images, self.sources)) for source in self.sources[kind]]

    @property
    def files_of_slices(self) -> list[Source]:
        """Files to be read that are put together to images."""
        from medssl_cli.formats.table import is_file_of_slices

        return [source for kind in sorted(filter(is_file_of_slices, self.sources)) for source in self.sources[kind]]

    def has_news(self, settled: Container[Source]) -> bool:
        """Whether there is anything to read but unchanged files that are settled."""
        is_new = bool(self.sources or self.redescribed or self.annotations)
        return is_new or not all(found.source in settled for found in self.unchanged)

    def add(self, found: Found) -> None:
        """Note one source; what is not read is settled at once."""
        self.builder.open(found)
        if found.source == found.root:
            self.named.add(found.source)
        may_describe = is_description(found.source.name)
        if found.kind == "known":
            self.unchanged.append(found)
            if may_describe and (dataset := read_dataset_json(found.source)):
                self.datasets.append(dataset)
        elif found.kind == "other" and _is_file_of_labels(found, is_named=found.source in self.named):
            self._add_text(found)
        elif found.kind == "other":
            self.builder.refuse([found.source], found.code, "")
            if found.code.startswith("E_") or found.code == "S_NOT_AN_IMAGE":
                self.unread.append((found.source, found.code))
        elif may_describe and (dataset := read_dataset_json(found.source)):
            self.datasets.append(dataset)
            self.redescribed.add(dataset.folder)
            self.builder.refuse([found.source], "S_SIDECAR", "")
        elif found.kind in TEXT_KINDS:
            self._add_text(found)
        else:
            self.sources[found.kind].append(found.source)

    def _add_text(self, found: Found) -> None:
        from medssl_cli.formats.labels.recognise import annotation_kind

        kind = annotation_kind(found.source, found.kind)
        if kind is None and found.source in self.named and not _describes_an_image(found.source):
            kind = "coco" if found.kind == "json" else "lidc" if found.kind == "xml" else "table"
        if kind is not None:
            self.annotations[found.source] = kind
        else:
            self.builder.refuse([found.source], "S_SIDECAR", "")

    def open_again(self, settled: Container[Source]) -> None:
        """Look at unchanged files after all, but for those that are settled."""
        unchanged, self.unchanged = self.unchanged, []
        for found in unchanged:
            if not isinstance(found.source, Path) or found.source in settled:
                self.unchanged.append(found)
                continue
            self.builder.withdraw(found)
            for again in classify(found.source, found.root, self.policy, max_archive_bytes=self.max_archive_bytes):
                self.add(again)


def _is_file_of_labels(found: Found, *, is_named: bool) -> bool:
    """Whether a file that was not recognised is one that users write labels into.

    A text is one if its header names images: most texts are something else. A workbook is one if it is named, so that
    it is refused with a reason.
    """
    from medssl_cli.formats.labels.recognise import is_keyed_table

    if found.code not in ("S_SIDECAR", "S_NOT_AN_IMAGE"):
        return False
    suffix = found.source.name.lower().rpartition(".")[2]
    if is_named and suffix in ("csv", "tsv", "json", "xml", "xlsx", "xls", "ods"):
        return True
    return suffix in ("tsv", "txt") and is_keyed_table(found.source)


def _describes_an_image(source: Source) -> bool:
    """Whether a file is the description of a data set, or of an image beside it that has its name."""
    if not isinstance(source, Path) or source.name in ("dataset.json", "dataset_description.json", "participants.tsv"):
        return True
    stem = source.name.rpartition(".")[0]
    from medssl_cli.formats.table import image_suffixes

    return any(source.with_name(stem + suffix).exists() for suffix in image_suffixes())
