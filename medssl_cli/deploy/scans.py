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
from medssl_cli.deploy.found import NO_IMAGES, FileIdentities, Findings, Place, Reject, Scan
from medssl_cli.deploy.naming import file_name, series_name, short_digest
from medssl_cli.formats.discover import Found, discover
from medssl_cli.formats.given_channels import GivenChannels
from medssl_cli.formats.picture_stacks import stacks_of
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.slice_store import FileOfSlices, SliceStore
from medssl_cli.formats.source import Member, Source, place_of
from medssl_cli.formats.table import image_formats, is_file_of_images, is_file_of_slices

if TYPE_CHECKING:
    from medssl_cli.formats.series import Refusal, SeriesPart

__all__ = [
    "NO_IMAGES",
    "Findings",
    "Place",
    "Reject",
    "Scan",
    "find_scans",
    "is_report",
    "longer_name",
    "with_unique_names",
]

UNNAMED_ABOVE: Final = 20
"""Files of one folder that are no images are told of one by one up to so many, then together."""
_NO_IMAGES: Final = ("S_NOT_AN_IMAGE", "S_SIDECAR")
_DUPLICATE: Final = "DUPLICATE"
_REPORT: Final = re.compile(r"report(\.[0-9]+-of-[0-9]+)?\.jsonl?")
NO_CHANNELS: Final = GivenChannels()
"""The user says nothing about channels."""


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
    roots = tuple(dict.fromkeys(path.resolve() for path in paths))
    root_of: dict[Source, Path] = {}
    search = _Search(
        policy, root_of, roots, takes_flat, ChannelFinder(given, root_of, policy, has_channels=has_channels)
    )
    found: list[Found] = []
    peek = None if is_wanted is None else lambda path, status: not is_wanted(path)
    for one in discover(paths, policy, peek=peek):
        if is_stopped():
            break
        if one.kind == "known" or _is_own_output(one, out):
            continue
        if is_file_of_slices(one.kind) and not _is_link(one.source):
            search.read_slices(one)
        else:
            found.append(one)
    root_of.update((one.source, one.root) for one in found)
    search.sort(found)
    if not is_stopped():
        search.add_series()
    return Findings(with_unique_names(search.scans), search.rejects, roots, search.files)


def is_report(name: str) -> bool:
    """Whether reports of inference on a folder, or on a part of the work, are called so."""
    return _REPORT.fullmatch(name) is not None


def _is_link(source: Source) -> bool:
    return isinstance(source, Path) and source.is_symlink()


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
        slices: Headers of files of slices.
        failures: Files of slices that are refused by themselves, by where they lie and why.
        files: Files that the scans are read from.
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
    slices: SliceStore = field(default_factory=SliceStore)
    failures: dict[tuple[Path, str, str, str, str], list[Source]] = field(default_factory=lambda: defaultdict(list))
    files: FileIdentities = field(default_factory=FileIdentities)

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
        for one in found:
            if is_file_of_slices(one.kind) and one.source not in self.set_aside:
                self.read_slices(one)
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
            place, kind = self._place(stack.sources, self.root_of[stack.sources[0]]), kinds[stack.sources[0]]
            name = file_name(Path(place.below or stack.folder.name).parts, image=None)
            self._add(Scan(place.path, name, kind, place, stack))
        return {source for stack in stacks for source in stack.sources}

    def _add(self, scan: Scan) -> None:
        self.scans.append(scan)
        self.files.add(scan.sources)

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
                self.set_aside.update({path} if target in taken or self.slices.holds(target) else ())
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
        place = self._place([source], self.root_of[source])
        parts = Path(place.below).parts if place.below else (source.name,)
        channels = self.finder.of_file(source, kind)
        case, case_name = self.finder.case_of(source, parts)
        for image in range(len(channels)) if len(channels) > 1 else [None]:
            key = place.path if image is None else f"{place.path}#{image}"
            name = file_name(parts, image=image)
            partners = self._partners_of(source) if image is None else ()
            self._add(Scan(key, name, kind, place, source, image, partners, channels[image or 0], case, case_name))

    def _partners_of(self, source: Source) -> tuple[tuple[str, Source], ...]:
        """See `Scan`; of a file that was named itself, nothing is known."""
        image = self.finder.images.get(source)
        return tuple((self.kinds[partner], partner) for partner in image.partners) if image else ()

    def read_slices(self, found: Found) -> None:
        """Keep the headers of a file of slices, or why it has none."""
        from medssl_cli.formats.series import read_headers

        source = found.source
        try:
            self.slices.add(FileOfSlices(read_headers(source, self.policy), found.root, found.kind))
        except InputError as error:
            self.root_of[source] = found.root
            cause = place_of(source).parent, found.kind, error.code, error.message, error.hint
            self.failures[cause].append(source)

    def add_series(self) -> None:
        """Put slices together as ingest does."""
        if self.slices.is_empty and not self.unread and not self.failures:
            return
        from medssl_cli.formats.series import RefusedFile, assemble_stored, lost_slice

        refused = [RefusedFile(source, code) for source, code in self.unread]
        for (_, kind, code, message, hint), group in self.failures.items():
            self._reject(group, code, message, hint, kind=kind)
            refused += [lost for source in group if (lost := lost_slice(source, code)) is not None]
        made: list[tuple[str, str, Scan | Reject]] = []
        duplicates: list[Reject] = []
        others: list[Reject] = []
        for files, found in assemble_stored(self.slices, refused, self.policy):
            by_source = {file.source: file for file in files}
            for refusal in found.refusals:
                rejects = self._refused_series(refusal, by_source)
                (duplicates if refusal.code == _DUPLICATE else others).extend(rejects)
            for part in found.parts:
                made.append((part.identity.study, part.identity.series, self._of_part(part, by_source)))
        self.rejects += [*duplicates, *others]
        for _, _, one in sorted(made, key=lambda each: each[:2]):
            if isinstance(one, Reject):
                self.rejects.append(one)
            else:
                self.scans.append(one)

    def _refused_series(self, refusal: "Refusal", files: Mapping[Source, FileOfSlices]) -> list[Reject]:
        members: dict[tuple[str, str, str], list[Source]] = defaultdict(list)
        for source in refusal.files:
            header = files[source].headers[0]
            members[header.StudyInstanceUID, header.SeriesInstanceUID, header.Modality].append(source)
        code = "S_DUPLICATE" if refusal.code == _DUPLICATE else refusal.code
        rejects = []
        for (study, series, modality), sources in members.items():
            first = files[sources[0]]
            place = replace(self._place(sources, first.root), study=study, series=series)
            key, name = f"{study}|{series}|{code}", series_name(modality, study, series)
            rejects.append(Reject(key, name, place, code, refusal.message, refusal.hint, len(sources), first.kind))
        return rejects

    def _of_part(self, part: "SeriesPart", files: Mapping[Source, FileOfSlices]) -> Scan | Reject:
        first, sources = part.headers[0], part.sources
        study, series = first.StudyInstanceUID, first.SeriesInstanceUID
        file = files[sources[0]]
        place = replace(self._place(sources, file.root), study=study, series=series)
        own = "" if part.is_whole_series else _part_digest(part)
        uids = [study, series, *([own] if own else [])]
        key, name = "|".join(uids), series_name(first.Modality, *uids)
        if part.spacing_kind is not None and not self.takes_flat:
            message = "a projection; the model is for volumes"
            return Reject(key, name, place, "E_NO_PATIENT_GEOMETRY", message, "", len(sources), file.kind)
        channel, case = self.finder.of_series(sources, first.Modality)
        self.files.add(sources)
        return Scan(key, name, file.kind, place, self.slices.keep(part), channel=channel, case=case)

    def _reject(
        self, sources: Sequence[Source], code: str, message: str = "", hint: str = "", *, kind: str = NO_IMAGES
    ) -> None:
        place = self._place(sources, self.root_of[sources[0]])
        name = place.below or Path(place.path).name
        key = place.path if len(sources) == 1 else f"{place.path}|{code}|{message}"
        self.rejects.append(Reject(key, name, place, code, message, hint, len(sources), kind))

    @staticmethod
    def _place(sources: Iterable[Source], root: Path) -> Place:
        """Place of a single source below an input, or the innermost folder that holds all of several."""
        places = [place_of(source) for source in sources]
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
