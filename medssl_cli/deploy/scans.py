"""Find the scans in what a user names, exactly as ingest finds images, and name everything that is none.

One walk (`formats.discover`), one way to put series together (`formats.series`), one table of formats (`formats.open`)
and one reading of names and folders (`formats.layouts`) serve both commands.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.base.errors import InputError
from medssl_cli.deploy.channels import ChannelFinder
from medssl_cli.deploy.naming import file_name, series_name, short_digest
from medssl_cli.formats.discover import Found, discover
from medssl_cli.formats.given_channels import GivenChannels
from medssl_cli.formats.picture_stacks import PictureStack, stacks_of
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Member, Source, place_of
from medssl_cli.formats.table import image_formats, is_file_of_images, is_file_of_slices

if TYPE_CHECKING:
    from medssl_cli.formats.series import Header, Refusal, SeriesPart

NO_IMAGES: Final = "files"
"""What files are called that are no images, where others have the name of their format."""
UNNAMED_ABOVE: Final = 20
"""Files of one folder that are no images are told of one by one up to so many, then together."""
_NO_IMAGES: Final = ("S_NOT_AN_IMAGE", "S_SIDECAR")
_DUPLICATE: Final = "DUPLICATE"
_REPORT: Final = re.compile(r"report(\.[0-9]+-of-[0-9]+)?\.jsonl?")
NO_CHANNELS: Final = GivenChannels()
"""The user says nothing about channels."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Scan:
    """One image to segment: that of a file, one of several in a file, or a DICOM series; or a case of several images.

    Args:
        key: What tells it from every other scan: its absolute path, or its UIDs.
        name: What its outputs are called.
        kind: Its format.
        place: Where it lies.
        sources: Its files.
        series: The slices of a series.
        stack: The pictures of a folder.
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
    sources: tuple[Source, ...]
    series: "SeriesPart | None" = None
    image: int | None = None
    partners: tuple[tuple[str, Source], ...] = ()
    channel: str = ""
    case: str = ""
    case_name: str = ""
    images: tuple["Scan", ...] = ()
    stack: PictureStack | None = None

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

    @property
    def original(self) -> "Source | SeriesPart | PictureStack":
        """What is opened to read it."""
        return self.stack or self.series or self.sources[0]


@dataclass(frozen=True)
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


@dataclass
class Findings:
    """What the inputs hold, in a stable order."""

    scans: list[Scan] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    roots: tuple[Path, ...] = ()


def find_scans(
    paths: Sequence[Path],
    policy: Policy = STRICT,
    *,
    out: Path | None = None,
    takes_flat: bool = False,
    given: GivenChannels = NO_CHANNELS,
    has_channels: bool = False,
    is_wanted: Callable[[Path], bool] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Findings:
    """Sort everything below some paths into scans and rejects.

    Args:
        paths: Files, folders and zip archives.
        policy: What is accepted and repaired.
        out: The folder of outputs: what inference wrote there is not told of.
        takes_flat: Pictures and projections are scans too; else they are refused, as the model is for volumes.
        given: What the user says about channels; their places must be among the paths.
        has_channels: The model names its channels, so that the images of a 4D file of which a description names the
            channels are taken one by one.
        is_wanted: Which files are opened and told of; all by default.
        is_stopped: Asked between files; what was found until then is returned.

    Raises:
        UsageError: `E_NOT_FOUND`; `E_PERMISSION`, an input folder cannot be listed.
    """
    found: list[Found] = []
    peek = None if is_wanted is None else lambda path, status: not is_wanted(path)
    for one in discover(paths, policy, peek=peek):
        if is_stopped():
            break
        if one.kind != "known" and not _is_own_output(one, out):
            found.append(one)
    roots = tuple(dict.fromkeys(path.resolve() for path in paths))
    root_of = {one.source: one.root for one in found}
    finder = ChannelFinder(given, root_of, policy, has_channels=has_channels)
    search = _Search(policy, root_of, roots, takes_flat, finder)
    search.sort(found)
    slices = {
        one.source: one.kind for one in found if is_file_of_slices(one.kind) and one.source not in search.set_aside
    }
    search.add_series(slices, is_stopped)
    return Findings(with_unique_names(search.scans), search.rejects, roots)


def is_report(name: str) -> bool:
    """Whether reports of inference on a folder, or on a part of the work, are called so."""
    return _REPORT.fullmatch(name) is not None


def _is_own_output(found: Found, out: Path | None) -> bool:
    if out is None or not isinstance(found.source, Path) or found.source.parent != out.resolve():
        return False
    return found.code == "S_PREDICTION" or found.source.name.endswith("report.json") or is_report(found.source.name)


@dataclass
class _Search:
    """Scans and rejects of one call, as they are found.

    Args:
        policy: Policy of the call.
        root_of: The input that each source was found under.
        roots: The inputs.
        takes_flat: Pictures and projections are scans.
        finder: Finds channels and cases.
        set_aside: Sources that are other names of files that are taken.
        kinds: Formats of files.
        unread: Files that could not be opened or are of no known kind: damaged slices may be among them.
    """

    policy: Policy
    root_of: dict[Source, Path]
    roots: tuple[Path, ...]
    takes_flat: bool
    finder: ChannelFinder
    scans: list[Scan] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    set_aside: set[Source] = field(default_factory=set)
    kinds: dict[Source, str] = field(default_factory=dict)
    unread: list[tuple[Source, str]] = field(default_factory=list)

    def sort(self, found: Sequence[Found]) -> None:
        """Take files of whole images, and set aside all that is neither that nor a slice."""
        self._set_links_aside(found)
        labels = self._label_maps(found)
        stacked = self._add_stacks(found, labels)
        others: dict[tuple[Path, str], list[Source]] = defaultdict(list)
        for one in found:
            if one.source in self.set_aside:
                self._reject([one.source], "S_DUPLICATE", "a link to a file that is taken itself")
            elif one.source in labels:
                self._reject([one.source], labels[one.source])
            elif one.source in stacked:
                continue
            elif self._is_taken(one.kind):
                self._add_file(one.source, one.kind)
            elif is_file_of_images(one.kind):
                self._reject([one.source], "E_NO_PATIENT_GEOMETRY", "a picture; the model is for volumes")
            elif not is_file_of_slices(one.kind):
                code = one.code or "S_SIDECAR"
                others[place_of(one.source).parent, code].append(one.source)
                if code.startswith("E_") or code == "S_NOT_AN_IMAGE":
                    self.unread.append((one.source, code))
        for (_, code), sources in others.items():
            together = len(sources) > UNNAMED_ABOVE and code in _NO_IMAGES
            for group in [sources] if together else [[source] for source in sources]:
                self._reject(group, code)

    def _add_stacks(self, found: Sequence[Found], labels: Mapping[Source, str]) -> set[Source]:
        """Take numbered pictures of a folder as one scan, if that is asked for; the pictures that are in one."""
        if not self.policy.stack_pictures:
            return set()
        formats = image_formats()
        kinds = {one.source: one.kind for one in found if one.kind in formats and formats[one.kind].is_flat}
        pictures = [source for source in kinds if source not in labels and source not in self.set_aside]
        stacks = stacks_of(pictures, min_slices=self.policy.min_slices)
        for stack in stacks:
            place, kind = self._place(stack.sources), kinds[stack.sources[0]]
            name = file_name(Path(place.below or stack.folder.name).parts, image=None)
            self.scans.append(Scan(place.path, name, kind, place, stack.sources, stack=stack))
        return {source for stack in stacks for source in stack.sources}

    def _is_taken(self, kind: str) -> bool:
        """Whether files of a kind hold images that the model takes."""
        return is_file_of_images(kind) and (self.takes_flat or not image_formats()[kind].is_flat)

    def _set_links_aside(self, found: Sequence[Found]) -> None:
        """Links to files that are found themselves; of several links to one file the first stays."""
        paths = [one.source for one in found if one.kind != "other" and isinstance(one.source, Path)]
        taken = {path for path in paths if not path.is_symlink()}
        for path in paths:
            if path.is_symlink():
                target = Path(os.path.realpath(path))
                self.set_aside.update({path} if target in taken else ())
                taken.add(target)

    def _label_maps(self, found: Sequence[Found]) -> dict[Source, str]:
        """Files that their names and folders make label maps, or no originals; a file that was named itself is none."""
        from medssl_cli.formats.layouts import arrange, read_dataset_json

        taken = [one.source for one in found if self._is_taken(one.kind)]
        files = taken if self.finder.has_channels else [source for source in taken if source not in self.roots]
        described = [one.source for one in found if one.source.name == "dataset.json"]
        datasets = [dataset for source in described if (dataset := read_dataset_json(source))]
        arrangement = arrange(files, datasets, roots=self.roots)
        self.kinds = {one.source: one.kind for one in found}
        self.finder.images.update((one.source, one) for one in arrangement.images)
        found_out = {label.source: "S_LABEL_MAP" for label in arrangement.labels} | dict(arrangement.skipped)
        return {source: code for source, code in found_out.items() if source not in self.roots}

    def _add_file(self, source: Source, kind: str) -> None:
        place = self._place([source])
        parts = Path(place.below).parts if place.below else (source.name,)
        channels = self.finder.of_file(source, kind)
        case, case_name = self.finder.case_of(source, parts)
        for image in range(len(channels)) if len(channels) > 1 else [None]:
            key = place.path if image is None else f"{place.path}#{image}"
            name = file_name(parts, image=image)
            partners = self._partners_of(source) if image is None else ()
            scan = Scan(key, name, kind, place, (source,), None, image, partners, channels[image or 0], case, case_name)
            self.scans.append(scan)

    def _partners_of(self, source: Source) -> tuple[tuple[str, Source], ...]:
        """See `Scan`; of a file that was named itself, nothing is known."""
        image = self.finder.images.get(source)
        return tuple((self.kinds[partner], partner) for partner in image.partners) if image else ()

    def add_series(self, kinds: Mapping[Source, str], is_stopped: Callable[[], bool]) -> None:
        """Put slices together as ingest does.

        Args:
            kinds: Their files, each with its format.
            is_stopped: Asked between files.
        """
        if not kinds:
            return
        from medssl_cli.formats.series import RefusedFile, assemble, lost_slice, read_headers

        headers: list[Header] = []
        refused = [RefusedFile(source, code) for source, code in self.unread]
        failures: dict[tuple[Path, str, str, str, str], list[Source]] = defaultdict(list)
        for source, kind in kinds.items():
            if is_stopped():
                return
            try:
                headers += read_headers(source, self.policy)
            except InputError as error:
                failures[place_of(source).parent, kind, error.code, error.message, error.hint].append(source)
                lost = lost_slice(source, error.code)
                refused += [lost] if lost is not None else []
        for (_, kind, code, message, hint), group in failures.items():
            self._reject(group, code, message, hint, kind=kind)
        found = assemble(headers, refused, self.policy)
        series_of = {header.source: header for header in headers}
        for refusal in found.refusals:
            self._refuse_series(refusal, series_of, kinds)
        for part in sorted(found.parts, key=lambda part: (part.identity.study, part.identity.series)):
            self._add_part(part, kinds[part.sources[0]])

    def _refuse_series(
        self, refusal: "Refusal", series_of: "dict[Source, Header]", kinds: Mapping[Source, str]
    ) -> None:
        members: dict[tuple[str, str, str], list[Source]] = defaultdict(list)
        for source in refusal.files:
            header = series_of[source]
            members[header.StudyInstanceUID, header.SeriesInstanceUID, header.Modality].append(source)
        code = "S_DUPLICATE" if refusal.code == _DUPLICATE else refusal.code
        for (study, series, modality), sources in members.items():
            place = replace(self._place(sources), study=study, series=series)
            key, name = f"{study}|{series}|{code}", series_name(modality, study, series)
            kind = kinds[sources[0]]
            self.rejects.append(Reject(key, name, place, code, refusal.message, refusal.hint, len(sources), kind))

    def _add_part(self, part: "SeriesPart", kind: str) -> None:
        first, sources = part.headers[0], part.sources
        study, series = first.StudyInstanceUID, first.SeriesInstanceUID
        place = replace(self._place(sources), study=study, series=series)
        own = "" if part.is_whole_series else _part_digest(part)
        uids = [study, series, *([own] if own else [])]
        key, name = "|".join(uids), series_name(first.Modality, *uids)
        if part.spacing_kind is not None and not self.takes_flat:
            message = "a projection; the model is for volumes"
            self.rejects.append(Reject(key, name, place, "E_NO_PATIENT_GEOMETRY", message, "", len(sources), kind))
        else:
            channel, case = self.finder.of_series(sources, first.Modality)
            scan = Scan(key, name, kind, place, sources, series=part, channel=channel, case=case)
            self.scans.append(scan)

    def _reject(
        self, sources: Sequence[Source], code: str, message: str = "", hint: str = "", *, kind: str = NO_IMAGES
    ) -> None:
        place = self._place(sources)
        name = place.below or Path(place.path).name
        key = place.path if len(sources) == 1 else f"{place.path}|{code}|{message}"
        self.rejects.append(Reject(key, name, place, code, message, hint, len(sources), kind))

    def _place(self, sources: Iterable[Source]) -> Place:
        """Place of a single source, or the innermost folder that holds all of several."""
        places = [place_of(source) for source in sources]
        root = self.root_of[next(iter(sources))]
        folders = [str(place.parent) for place in places]
        path = places[0] if len(places) == 1 else Path(os.path.commonpath(folders))
        base = root if root.is_dir() or root != places[0] else root.parent
        below = path.relative_to(base) if path.is_relative_to(base) else Path(path.name)
        return Place(readable(path), "" if str(below) == "." else readable(below))


def readable(path: Path) -> str:
    """A path as text that can be printed and stored; bytes that are no text are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _part_digest(part: "SeriesPart") -> str:
    """What tells one part of a series from the others: its slices."""
    slices = sorted((header.SOPInstanceUID, header.frame, str(header.tile)) for header in part.headers)
    return short_digest(repr(slices))


def with_unique_names(scans: Sequence[Scan]) -> list[Scan]:
    """Files of one name under several inputs, or twice in one archive, also bear a digest of where they lie."""
    counts = Counter(scan.name for scan in scans)
    return [replace(scan, name=longer_name(scan)) if counts[scan.name] > 1 else scan for scan in scans]


def longer_name(scan: Scan) -> str:
    """A name for where the scan's own is another scan's."""
    index = "".join(f"!{source.index}" for source in scan.sources if isinstance(source, Member))
    return f"{scan.name}-{short_digest(scan.key + index)}"
