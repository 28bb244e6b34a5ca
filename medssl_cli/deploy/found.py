"""What inputs hold: scans, and what is none, each with its place. Ten thousand of them are small."""

import contextlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.formats.picture_stacks import PictureStack
from medssl_cli.formats.slice_store import StoredSeries
from medssl_cli.formats.source import Member, Source

if TYPE_CHECKING:
    from medssl_cli.formats.series import SeriesPart

NO_IMAGES: Final = "files"
"""What files are called that are no images, where others have the name of their format."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies, as it can be written down.

    Args:
        path: Absolute; a member of an archive has the archive's path and its own.
        below: The same below the input that it was found under.
        study: StudyInstanceUID of DICOM.
        series: SeriesInstanceUID of DICOM.
    """

    path: str
    below: str
    study: str = ""
    series: str = ""


@dataclass(frozen=True, slots=True)
class Scan:
    """One image to segment: that of a file, one of several in a file, or a DICOM series; or a case of several images.

    Args:
        key: What tells it from every other scan: its absolute path, or its UIDs.
        name: What its outputs are called.
        kind: Its format.
        place: Where it lies.
        held: What is opened to read it: a file, the slices of a series, the pictures of a folder; or slices put away.
        image: Which of the images of a file of several.
        partners: Files, with their kinds, of images that it is a label map of if its voxels look like one.
        channel: Which image of its case it is, a word; "" if nothing says.
        case: What it has in common with the other images of its case; "" if nothing says.
        case_name: What outputs of the case are called.
        images: Images of a case of several: one per channel in the model's order. Everything else is the first one's.
    """

    key: str
    name: str
    kind: str
    place: Place
    held: "Source | SeriesPart | StoredSeries | PictureStack"
    image: int | None = None
    partners: tuple[tuple[str, Source], ...] = ()
    channel: str = ""
    case: str = ""
    case_name: str = ""
    images: tuple["Scan", ...] = ()

    @property
    def original(self) -> "Source | SeriesPart | PictureStack":
        """What is opened to read it."""
        return self.held.loaded() if isinstance(self.held, StoredSeries) else self.held

    @property
    def sources(self) -> tuple[Source, ...]:
        """Its files."""
        original = self.original
        return (original,) if isinstance(original, Path | Member) else original.sources

    @property
    def is_series(self) -> bool:
        """Whether it is put together from slices."""
        return not isinstance(self.held, Path | Member | PictureStack)

    @property
    def series(self) -> "SeriesPart | None":
        """The slices of a series."""
        original = self.original
        return None if isinstance(original, Path | Member | PictureStack) else original

    @property
    def loaded(self) -> "Scan":
        """The same with all slices in memory, for the time that something is done with it."""
        return replace(self, held=self.original, images=tuple(image.loaded for image in self.images))

    @property
    def parts(self) -> tuple["Scan", ...]:
        """The images of a case, or the scan itself."""
        return self.images or (self,)

    @property
    def files(self) -> tuple[Source, ...]:
        """All files that it is read from, each once."""
        return tuple(dict.fromkeys(source for part in self.parts for source in part.sources))

    @property
    def channels(self) -> dict[str, str]:
        """Where the images of a case lie, by channel."""
        return {part.channel: part.shown_place for part in self.images}

    @property
    def shown_place(self) -> str:
        """Where it lies below the input, and which image of a file of several it is."""
        below = self.place.below or Path(self.place.path).name
        return below if self.image is None else f"{below}#{self.image}"


@dataclass(frozen=True, slots=True)
class Reject:
    """Files that are no scan, and why: an `E_` or `S_` code."""

    key: str
    name: str
    place: Place
    code: str
    message: str = ""
    hint: str = ""
    num_files: int = 1
    kind: str = NO_IMAGES


class FileIdentities:
    """Device and inode of any number of files, eight bytes each."""

    def __init__(self) -> None:
        self._inodes: dict[int, array[int]] = {}
        self._sorted: dict[int, NDArray[np.uint64]] = {}

    def add(self, sources: Iterable[Source]) -> None:
        """Take files among them; those that are not there are left out."""
        for path in {source.archive if isinstance(source, Member) else source for source in sources}:
            with contextlib.suppress(OSError):
                status = path.stat()
                self._inodes.setdefault(status.st_dev, array("Q")).append(status.st_ino)
                self._sorted.pop(status.st_dev, None)

    def __contains__(self, identity: object) -> bool:
        """Whether a pair of device and inode is among them."""
        if not isinstance(identity, tuple) or identity[0] not in self._inodes:
            return False
        device, inode = identity
        if device not in self._sorted:
            self._sorted[device] = np.unique(np.array(self._inodes[device], np.uint64))
        known = self._sorted[device]
        place = int(np.searchsorted(known, np.uint64(inode)))
        return place < len(known) and int(known[place]) == inode


@dataclass
class Findings:
    """What the inputs hold, in a stable order.

    Args:
        scans: Scans.
        rejects: Files that are none.
        roots: The inputs.
        files: Files that the scans are read from.
    """

    scans: list[Scan] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    roots: tuple[Path, ...] = ()
    files: FileIdentities = field(default_factory=FileIdentities)
