"""Cases: the scans of one patient that a model of several channels sees at once.

Which channel a scan is, and of which case, is said by the user (`--channel flair=PATH`), by the layouts that ingest
knows, or by DICOM: a folder that is named after a channel, or the modality, as CT and PET of one study. Descriptions of
series are not read: they are free text.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from medssl_cli.base.errors import UsageError
from medssl_cli.deploy.scans import Findings, Reject, Scan, with_unique_names
from medssl_cli.formats.given_channels import GivenChannels
from medssl_cli.formats.name_words import same_channel
from medssl_cli.formats.source import place_of

HINT: Final = "name the dataset.json of the folder too, or say which channel a file or folder is: --channel NAME=PATH"
_NAMED: Final = 5


def require_channels(given: GivenChannels, names: Sequence[str]) -> None:
    """Refuse channels that a model does not take.

    Args:
        given: What the user says.
        names: Names of the model's channels; none of a model of one image without a name.

    Raises:
        UsageError: `E_USAGE`.
    """
    others = sorted(given.words - set(map(same_channel, names)))
    if others:
        takes = f"takes {', '.join(names)}" if names else "takes one image, whose channel has no name"
        raise UsageError("E_USAGE", f"the model has no channel {', '.join(others)}: it {takes}")


def put_together(found: Findings, names: Sequence[str], given: GivenChannels) -> Findings:
    """Scans of one image each to cases with an image for each channel; what is no case is refused by name.

    Args:
        found: All scans.
        names: Names of the model's channels in their order; none of a model of one image without a name.
        given: What the user says about channels.

    Returns:
        The cases, each in the place of its first channel's scan, which names it.
    """
    if not names:
        return found
    wanted = tuple(map(same_channel, names))
    grouping = _Grouping(wanted, is_one_case=_is_one_case(given, found.scans, wanted))
    if len(wanted) == 1:
        kept = [scan for scan in found.scans if scan.channel in ("", *wanted)]
        rejects = [grouping.other(scan) for scan in found.scans if scan.channel not in ("", *wanted)]
        return replace(found, scans=kept, rejects=[*found.rejects, *rejects])
    cases, rejects = grouping.cases(found.scans)
    return replace(found, scans=with_unique_names(cases), rejects=[*found.rejects, *rejects])


def _is_one_case(given: GivenChannels, scans: Sequence[Scan], wanted: Sequence[str]) -> bool:
    """Whether the user has named exactly one file or series for each channel; a file found in a folder is not named."""
    named = {scan.key: place for scan in scans if (place := given.at(scan.sources[0])) is not None}
    own = [scan for scan in scans if scan.key in named]
    are_named = all(scan.is_series or named[scan.key][1] == place_of(scan.sources[0]) for scan in own)
    return are_named and Counter(scan.channel for scan in own) == dict.fromkeys(wanted, 1)


@dataclass(frozen=True)
class _Grouping:
    """How scans become cases.

    Args:
        wanted: Words of the model's channels, in its order.
        is_one_case: The user has named one scan for each channel: they are one case, whatever they are called.
    """

    wanted: tuple[str, ...]
    is_one_case: bool

    def cases(self, scans: Sequence[Scan]) -> tuple[list[Scan], list[Reject]]:
        """All whole cases, and why the other scans are none."""
        groups: dict[tuple[str, ...], dict[str, list[Scan]]] = defaultdict(lambda: defaultdict(list))
        rejects: list[Reject] = []
        for scan in scans:
            if scan.channel in self.wanted:
                groups[self._case_of(scan)][scan.channel].append(scan)
            elif scan.channel:
                rejects.append(self.other(scan))
            else:
                told = f"nothing says which of {', '.join(self.wanted)} it is"
                rejects.append(_rejected([scan], "E_CHANNEL_MISSING", told))
        found: list[Scan] = []
        for by_channel in groups.values():
            images = [scan for channel in self.wanted for scan in by_channel.get(channel, ())]
            if missing := [channel for channel in self.wanted if channel not in by_channel]:
                rejects.append(_rejected(images, "E_CHANNEL_MISSING", f"the case has no image of {', '.join(missing)}"))
            elif several := [channel for channel in self.wanted if len(by_channel[channel]) > 1]:
                rejects.append(_rejected(images, "E_CHANNEL_AMBIGUOUS", _candidates(several[0], by_channel)))
            else:
                found.append(_case(images))
        return found, rejects

    def other(self, scan: Scan) -> Reject:
        """A scan of a channel that the model does not take."""
        told = f"an image of {scan.channel}; the model takes {', '.join(self.wanted)}"
        return Reject(scan.key, scan.name, scan.place, "S_OTHER_CHANNEL", told, "", len(scan.sources), scan.kind)

    def _case_of(self, scan: Scan) -> tuple[str, ...]:
        """What the scans of one case have in common, and no others."""
        if self.is_one_case:
            return ("given",)
        if scan.case:
            return "case", scan.case
        series = scan.series
        if series is not None and series.identity.frame_of_reference:
            identity = series.identity
            return "frame", identity.patient or "", identity.study, identity.frame_of_reference or ""
        return "scan", scan.key


def _case(images: Sequence[Scan]) -> Scan:
    """A scan of several images, with the identity and the place of the first."""
    first = images[0]
    return replace(first, name=first.case_name or first.name, images=tuple(images))


def _candidates(channel: str, by_channel: Mapping[str, Sequence[Scan]]) -> str:
    """Which images of a case are the same channel."""
    scans = by_channel[channel]
    shown = ", ".join(scan.place.below or scan.name for scan in scans[:_NAMED])
    return f"{len(scans)} images of the case are {channel}: {shown}{' ...' if len(scans) > _NAMED else ''}"


def _rejected(images: Sequence[Scan], code: str, told: str) -> Reject:
    """A case that is none, under the name and place of its first image."""
    first = images[0]
    num_files = len({source for image in images for source in image.sources})
    return Reject(first.key, first.name, first.place, code, told, HINT, num_files, first.kind)
