"""What became of scans: one entry each, what an entry must hold to be believed, and the results of one call."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from medssl_cli import __version__
from medssl_cli.base.errors import Exit
from medssl_cli.base.files import json_bytes
from medssl_cli.deploy.found import NO_IMAGES, Reject, Scan
from medssl_cli.imaging.measuring import Measurement

Status = Literal["done", "refused", "skipped", "pending"]
STATUSES: Final = get_args(Status)
NOT_SENT: Final = "W_NOT_SENT"
"""An output is still to be sent."""
NOT_TAKEN: Final = "W_NOT_TAKEN"
"""A place will not take an output."""
LARGEST_NUMBER: Final = 1e300
_NAMES: Final = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "description": "SeriesDescription"}


@dataclass(frozen=True)
class ScanResult:
    """What became of one scan, or of files that are none.

    Args:
        name: Name of the scan, as its outputs are called; of files that are none, their path below the input.
        status: `done`, `refused` (trusted no further), `skipped` (no scan, by rule) or, in a dry run, `pending`.
        kind: Its format.
        key: What tells it from every other: its absolute path, or its UIDs.
        task: Task of the model.
        code: Why not `done`.
        message: Message with numbers; of a scan that is done, what more there is to say about its warnings.
        hint: What to do about it.
        warnings: `W_` codes.
        repairs: What the options changed in the scan; its mask then lies on the grid that they made.
        path: Where it lies, absolute; of a series the innermost folder that holds it.
        place: The same below the input that was named.
        study: StudyInstanceUID of DICOM.
        series: SeriesInstanceUID of DICOM.
        description: SeriesDescription of DICOM.
        files: How many there are.
        shape: Size (X, Y, Z) of the image in voxels.
        spacing_mm: Millimetres (x, y, z) between their centres.
        volumes_ml: Volume of each class, 0 of one that was not found.
        seconds: Time for reading, computing and writing.
        device: Device on which the model ran.
        input_sha256: SHA-256 of what the outputs were made from.
        model_sha256: SHA-256 of the model that made them.
        options: Repairs that were allowed, and other departures.
        outputs: Names of the files that hold the result, whether written now or there already.
        outputs_sha256: SHA-256 of each of them.
        resumed: An earlier call had done it, and nothing has changed.
        head: `findings`, `boxes`, `regions`, or `candidates` for boxes of volumes; "" of label maps.
        findings: Probabilities by name.
        boxes: Boxes with class, score, whether it reaches the operating point, and corners in pixel edges of a picture,
            or in RAS+ millimetres with a diameter.
        thresholds: Thresholds of the operating points, by name.
        memory: Bytes of each part of a plan, and of everything together.
        channels: Place of each image of a case of several, below the input that was named, by its channel.
        sent: Where the outputs have arrived, of the places that were asked to take them.
        delivered: What a place that has not all of them says of each output: `taken`, or why it will not take it.
        unlike: How far the scan lies from the training images, the share in percent of images left out of their sum
            that lie nearer, and the limit; nothing of models that cannot tell.
        measurements: What is measured of each class that was found.
        value_units: Unit of the scan's values in them: HU, SUVbw, Bq/ml, or a.u. where the scan has units of its own.
    """

    name: str
    status: Status
    kind: str = NO_IMAGES
    key: str = ""
    task: str = ""
    code: str = ""
    message: str = ""
    hint: str = ""
    warnings: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    path: str = ""
    place: str = ""
    study: str = ""
    series: str = ""
    description: str = ""
    files: int = 1
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    volumes_ml: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    device: str = ""
    input_sha256: str = ""
    model_sha256: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    outputs_sha256: dict[str, str] = field(default_factory=dict)
    resumed: bool = False
    head: str = ""
    findings: dict[str, float] = field(default_factory=dict)
    boxes: tuple[dict[str, Any], ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)
    channels: dict[str, str] = field(default_factory=dict)
    sent: tuple[str, ...] = ()
    delivered: dict[str, dict[str, str]] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    unlike: dict[str, float] = field(default_factory=dict)
    measurements: dict[str, Measurement] = field(default_factory=dict)
    value_units: str = ""

    @classmethod
    def of(cls, one: Scan | Reject, task: str) -> Self:
        """What is known of something that was found, before it is opened."""
        place = one.place
        files, channels = (one.num_files, {}) if isinstance(one, Reject) else (len(one.files), one.channels)
        return cls(
            one.name, "refused", one.kind, one.key, task, path=place.path, place=place.below, study=place.study,
            series=place.series, files=files, channels=channels,
        )  # fmt: skip

    def cut_off(self, name: str) -> tuple[str, ...]:
        """Sides of the patient on which a class reaches the edge of the scan, so that there is more of it."""
        measurement = self.measurements.get(name)
        return measurement.cut_off if measurement is not None else ()

    def volume_text(self, name: str) -> str:
        """The volume of a class for people, who must not take the part that was seen for the whole."""
        sides = " ".join(self.cut_off(name))
        return f"{self.volumes_ml[name]:.1f} mL{f' or more (cut off: {sides})' if sides else ''}"

    def to_json(self) -> dict[str, Any]:
        """The entry in the report; DICOM's attributes have their own names there."""
        told = {_NAMES.get(one.name, one.name): getattr(self, one.name) for one in fields(self)}
        return {**told, "measurements": {name: asdict(each) for name, each in self.measurements.items()}}

    @classmethod
    def from_json(cls, entry: Any) -> Self | None:
        """An entry of a report, by this version or an earlier one; None if it is something else."""
        if not isinstance(entry, dict):
            return None
        values: dict[str, Any] = {}
        for one in fields(cls):
            value = entry.get(_NAMES.get(one.name, one.name))
            if value is not None:
                values[one.name] = tuple(value) if isinstance(value, list) else value
        if isinstance(measurements := values.get("measurements"), dict):
            values["measurements"] = {each: _measurement_of(value) for each, value in measurements.items()}
        is_sound = all(_CHECKS[name](value) for name, value in values.items())
        return cls(**values) if is_sound and {"name", "status"} <= values.keys() else None


Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < LARGEST_NUMBER  # false for NaN


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_option(value: Any) -> bool:
    return _is_text(value) or _is_number(value)


def _list_of(check: Check, length: int | None = None) -> Check:
    return lambda value: isinstance(value, tuple) and length in (None, len(value)) and all(map(check, value))


def _map_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_box(value: Any) -> bool:
    if not (isinstance(value, dict) and value.keys() - {"diameter_mm"} == {"class", "score", "is_yes", "corners"}):
        return False
    corners, is_measured = value["corners"], _is_number(value.get("diameter_mm"))
    is_place = isinstance(corners, list) and len(corners) == (6 if is_measured else 4) and all(map(_is_number, corners))
    return is_place and _is_text(value["class"]) and _is_number(value["score"]) and isinstance(value["is_yes"], bool)


def _measurement_of(entry: Any) -> Measurement | None:
    """A measurement in a report; None if it is something else."""
    if not isinstance(entry, dict) or entry.keys() != _MEASURED.keys():
        return None
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    return Measurement(**values) if all(_MEASURED[name](value) for name, value in values.items()) else None


_MEASURED: Final[dict[str, Check]] = {
    **{one.name: _is_number for one in fields(Measurement)},
    **dict.fromkeys(("voxels", "axes_slice", "parts"), _is_count),
    "cut_off": _list_of(_is_text),
    "extent_mm": _list_of(_is_number, 3),
    "centre_mm": _list_of(_is_number, 3),
}
_CHECKS: Final[dict[str, Check]] = {
    **{one.name: _is_text for one in fields(ScanResult)},
    "status": lambda value: _is_text(value) and value in STATUSES,
    "warnings": _list_of(_is_text),
    "repairs": _list_of(_is_text),
    "files": _is_count,
    "channels": _map_of(_is_text),
    "shape": _list_of(_is_count, 3),
    "spacing_mm": _list_of(_is_number, 3),
    "volumes_ml": _map_of(_is_number),
    "measurements": _map_of(lambda value: isinstance(value, Measurement)),
    "findings": _map_of(_is_number),
    "boxes": _list_of(_is_box),
    "thresholds": _map_of(_is_number),
    "memory": _map_of(_is_number),
    "unlike": _map_of(_is_number),
    "seconds": _is_number,
    "options": _map_of(_is_option),
    "outputs": _list_of(_is_text),
    "outputs_sha256": _map_of(_is_text),
    "sent": _list_of(_is_text),
    "delivered": _map_of(_map_of(_is_text)),
    "resumed": lambda value: isinstance(value, bool),
}
"""What the fields of an entry must hold to be believed; a report lies where others write, too."""


@dataclass(frozen=True)
class InferReport:
    """The results of one call, and what made them.

    Args:
        not_reached: Scans that a stop request left for the next call.
        is_dry_run: Nothing was computed or written.
        page: The page of the call, if one was written.
    """

    task: str
    model_sha256: str
    device: str
    intended_use: str
    folder: Path
    path: Path
    results: Sequence[ScanResult]
    not_reached: int = 0
    is_dry_run: bool = False
    page: Path | None = None

    def count(self, status: str) -> int:
        """Results of a status."""
        return _count(self.results, status)

    @property
    def exit_code(self) -> Exit:
        """`OK`, `PARTIAL` if something was refused or not sent, `NOTHING` if no scan has a mask; of a dry run, will."""
        if not self.count("done") + self.count("pending"):
            return Exit.NOTHING
        is_sent = not any({NOT_SENT, NOT_TAKEN} & {*result.warnings} for result in self.results)
        return Exit.OK if is_sent and not self.count("refused") else Exit.PARTIAL

    @property
    def header(self) -> dict[str, Any]:
        """What is said once for all results."""
        return {
            "medssl_version": __version__,
            "task": self.task,
            "model_sha256": self.model_sha256,
            "device": self.device,
            "intended_use": self.intended_use,
        }

    def document(self) -> dict[str, Any]:
        """What this call did, for `--json`."""
        told: dict[str, Any] = {"dry_run": self.is_dry_run, "not_reached": self.not_reached}
        if self.page is not None:
            told["page"] = self.page.name
        return {**report_document(self.header, self.results), **told}


def report_document(header: dict[str, Any], results: Sequence[ScanResult]) -> dict[str, Any]:
    """A report's JSON: what is said once, how many ended how, and every result."""
    counts = {status: _count(results, status) for status in ("done", "refused", "skipped")}
    return {**header, **counts, "results": [result.to_json() for result in results]}


def report_pieces(header: dict[str, Any], counts: Mapping[str, int], entries: Iterable[str]) -> Iterator[bytes]:
    """A report's file as `json_bytes` of its document gives it, entry by entry.

    Args:
        header: What is said once.
        counts: How many entries have which status.
        entries: Entries as indented JSON.
    """
    told = {**header, **{status: counts.get(status, 0) for status in ("done", "refused", "skipped")}, "results": []}
    before, mark, after = json_bytes(told).decode().partition('"results": []')
    yield (before + mark[:-1]).encode()
    between = "\n    "
    for text in entries:
        yield (between + text.replace("\n", "\n    ")).encode()
        between = ",\n    "
    yield (("\n  ]" if between.startswith(",") else "]") + after).encode()


def _count(results: Iterable[ScanResult], status: str) -> int:
    return sum(result.status == status for result in results)
