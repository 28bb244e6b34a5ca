"""Read a scan, with the repairs that the user asked for, and say what it was read from."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from medssl_cli.base.errors import InputError
from medssl_cli.deploy.scans import Scan
from medssl_cli.formats.image_notes import may_be_label_map
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.open import Surroundings, files_of, needs_decoder, open_images
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Source, read_bytes
from medssl_cli.imaging.geometry import is_turned_grid
from medssl_cli.work.workers import OUT_OF_MEMORY, supervised_map

if TYPE_CHECKING:
    from medssl_cli.formats.picture_stacks import PictureStack
    from medssl_cli.formats.series import SeriesPart

DECODE_TIMEOUT_S: Final = 600.0
PLAUSIBLE_CT: Final = (-50.0, 50.0)
"""A CT image has air or fat below the first and soft tissue above the second value, in Hounsfield units."""
OF_NO_CONCERN: Final = ("W_NO_PATIENT_KEY", "W_UNKNOWN_MODALITY", "W_LABEL_LIKE")
"""Notes about training data: whose an image is, which recipes take it, whether it is one."""


@dataclass
class ScanReader:
    """Reads scans one after the other; of a file of several images only the first time.

    Args:
        policy: What is accepted and repaired.
        modality: Modality of the model; what a file without a modality is taken for. None takes anything.
    """

    policy: Policy
    modality: str | None
    _file: object = None
    _images: list[LoadedImage] = field(default_factory=list)

    def read(self, scan: Scan) -> LoadedImage:
        """One scan, as ingest would store it; its warnings are those that concern a model.

        Raises:
            InputError: It cannot be trusted, or is of another modality than the model's; `S_LABEL_MAP`.
        """
        scan = scan.loaded
        if (series := scan.series) is not None:
            self._check_modality(series.modality)
        image = self._image(scan)
        if image.states_modality:
            self._check_modality(image.volume.modality)
        if scan.partners and self._is_label_map(image, scan):
            raise InputError("S_LABEL_MAP", "few whole numbers on the grid of an image of its name")
        found = dict.fromkeys((*image.warnings, *_doubts(image, self.modality)))
        return replace(image, warnings=tuple(code for code in found if code not in OF_NO_CONCERN))

    def read_all(self, scan: Scan) -> list[LoadedImage]:
        """The images of a case, one per channel, or the one image of a scan; see `read`.

        Raises:
            InputError: `E_CHANNEL_GRID`, `E_PATIENT_MIX`.
        """
        images = [self.read(part) for part in scan.parts]
        for image, part in zip(images[1:], scan.parts[1:], strict=True):
            require_one_world(images[0], image, (scan.parts[0].channel, part.channel))
        return images

    def _check_modality(self, found: str) -> None:
        if self.modality is not None and found != self.modality:
            raise InputError("E_MODALITY_MISMATCH", f"the model is for {self.modality}, this scan is {found}")

    def _image(self, scan: Scan) -> LoadedImage:
        if scan.image is None:
            return _the_one(self._opened(scan.original, scan.kind, self.policy), 0, num_images=1)
        if self._file != scan.held or scan.image >= len(self._images):
            self._file, self._images = None, []
            self._images = self._opened(scan.original, scan.kind, replace(self.policy, split_4d=True))
            self._file = scan.held
        return _the_one(self._images, scan.image)

    def _opened(self, original: "Source | SeriesPart | PictureStack", kind: str, policy: Policy) -> list[LoadedImage]:
        """All images; a decoder that dies or hangs takes a child process with it, not this one."""
        task = original, kind, policy, Surroundings(self.modality or "unknown")
        return _decoded(task) if needs_decoder(original, kind) else _opened(task)

    def _is_label_map(self, image: LoadedImage, scan: Scan) -> bool:
        """Whether an image looks like a label map and lies on the grid of a partner that does not, as ingest judges."""
        if not may_be_label_map(image):
            return False
        for kind, source in scan.partners:
            try:
                partner = self._image(replace(scan, kind=kind, held=source))
            except InputError:
                continue
            mine, other = image.volume, partner.volume
            is_on_grid = is_turned_grid(other.affine, other.shape, mine.affine, mine.shape)
            if is_on_grid and not may_be_label_map(partner):
                return True
        return False


def require_one_world(first: LoadedImage, other: LoadedImage, channels: tuple[str, str]) -> None:
    """Refuse images of which nothing says where one lies in the other, or of two persons, as training does.

    Args:
        first: Image of the first channel.
        other: Image of another channel.
        channels: Their words.

    Raises:
        InputError: `E_CHANNEL_GRID`, `E_PATIENT_MIX`.
    """
    patients = {image.identity.patient for image in (first, other)} - {None}
    if len(patients) > 1:
        raise InputError("E_PATIENT_MIX", f"the images of {channels[0]} and {channels[1]} name two patients")
    frames = first.identity.frame_of_reference, other.identity.frame_of_reference
    one, two = first.volume, other.volume
    are_volumes = first.spacing_kind is None and other.spacing_kind is None
    has_one_world = frames[0] is not None and frames[0] == frames[1]
    is_on_grid = is_turned_grid(two.affine, two.shape, one.affine, one.shape)
    if not is_on_grid and not (are_volumes and has_one_world):
        raise InputError(
            "E_CHANNEL_GRID",
            f"the image of {channels[1]} lies on another grid than that of {channels[0]}, and no frame of reference "
            "says where",
            hint="register the images and resample them to one grid first",
        )


def told_together(images: Sequence[LoadedImage]) -> LoadedImage:
    """The first image of a case with what is to be said about all of them."""
    notes: dict[str, Any] = {
        name: tuple(dict.fromkeys(note for image in images for note in getattr(image, name)))
        for name in ("warnings", "repairs", "details")
    }
    return replace(images[0], **notes)


def _the_one(images: list[LoadedImage], index: int, *, num_images: int | None = None) -> LoadedImage:
    """One image of a file that held so many when it was found, if that is known."""
    if index >= len(images) or num_images not in (None, len(images)):
        raise InputError("E_CHANGED_DURING_READ", f"the file holds {len(images)} images now")
    return images[index]


Reading = tuple["Source | SeriesPart | PictureStack", str, Policy, Surroundings]
"""What is opened, its kind, and how."""


def _opened(task: Reading) -> list[LoadedImage]:
    original, kind, policy, around = task
    return open_images(original, policy, kind=kind, around=around)


def _decoded(task: Reading) -> list[LoadedImage]:
    with contextlib.closing(
        supervised_map(decode_in_child, [task], num_workers=1, timeout_s=DECODE_TIMEOUT_S)
    ) as outcomes:
        outcome = next(outcomes)
    if outcome.failure == OUT_OF_MEMORY:
        raise InputError("E_TOO_BIG", "the process that decoded this scan ran out of memory")
    if outcome.result is None:
        raise InputError("E_DECODER_CRASH", f"the process that decoded this scan {outcome.failure}")
    if isinstance(outcome.result, InputError):
        raise outcome.result
    return outcome.result


def decode_in_child(task: Reading) -> list[LoadedImage] | InputError:
    """Open something; what is wrong with it is returned and not raised."""
    try:
        return _opened(task)
    except InputError as error:
        return error


def input_digest(scan: Scan, policy: Policy) -> str:
    """SHA-256 of all bytes that a scan is read from; files of a series count in any order, channels in theirs.

    A file that another one names counts if it can be read; whether it may be is for the reader to say.

    Raises:
        InputError: A file of the scan cannot be read.
    """
    scan = scan.loaded
    if scan.images:
        known = {sources: input_digest(part, policy) for sources, part in {p.sources: p for p in scan.images}.items()}
        told = [f"{part.channel}#{part.image}:{known[part.sources]}" for part in scan.images]
        return hashlib.sha256("|".join(told).encode()).hexdigest()
    digests = sorted(hashlib.sha256(read_bytes(source)).hexdigest() for source in scan.sources)
    for source in files_of(scan.original, scan.kind, policy):
        with contextlib.suppress(InputError):
            digests += [] if source in scan.sources else [hashlib.sha256(read_bytes(source)).hexdigest()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _doubts(image: LoadedImage, modality: str | None) -> list[str]:
    """Notes about values that a CT in Hounsfield units, and so the input of a CT model, cannot have."""
    voxels = image.volume.voxels
    is_plausible = voxels.min() < PLAUSIBLE_CT[0] and voxels.max() > PLAUSIBLE_CT[1] and image.volume.units == "HU"
    return [] if modality != "CT" or is_plausible else ["W_HU_IMPLAUSIBLE"]
