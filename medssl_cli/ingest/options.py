"""Everything that a user decides about an ingest."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from medssl_cli import __version__
from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.cache.format import Modality, check_label_set
from medssl_cli.formats.given_channels import GivenChannels, require_word
from medssl_cli.formats.name_words import same_channel
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.table_choice import TableChoice

if TYPE_CHECKING:
    from medssl_cli.formats.dicomweb import Credentials, PacsQuery, Patience
    from medssl_cli.ingest.tasks import Overlap

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class PacsSource:
    """A PACS, and which of its series to retrieve.

    Args:
        url: As `formats.dicomweb.Address` reads it.
        query: Which series.
        credentials: Credentials of the user.
        ca_bundle: Certificates to trust; by default those of the system.
        settle_s: A series counts as complete when its list of instances has not changed for so long.
        patience: Patience with a busy or failing PACS; by default an hour.
    """

    url: str
    query: "PacsQuery"
    credentials: "Credentials"
    ca_bundle: Path | None = None
    settle_s: float = 30.0
    patience: "Patience | None" = None


@dataclass(frozen=True)
class IngestOptions:
    """Options of one ingest.

    Args:
        label_set: Name under which labels are stored.
        modality: Modality of files that do not say and that no `dataset.json` describes.
        patient_pattern: Regular expression for the patient part of file names; see `patients_from_places`.
        policy: What is accepted and repaired.
        workers: Child processes; as many as cores by default.
        cluster: Address of a Dask scheduler that does the work instead.
        dry_run: Judge everything, write nothing.
        reread: Open every file again, even where nothing has changed since an earlier ingest.
        report_path: Write the report here as well, always.
        key_file: The site's key; by default where the cache says.
        structures: Structures of DICOM SEG and RTSTRUCT: these only; the first becomes value 1.
        seg_fraction: Share of the maximum from which on a fractional DICOM SEG counts.
        settle_s: Wait until the folders have not changed for so long.
        tables: What the columns of tables of labels are.
        overlap: What becomes of voxels that files of one structure each share; see `label_maps.merge`.
        channel: Channel of images of which no layout says which of several images of a case they are: `flair`.
        channel_places: The same of files and folders, whatever their names say.

    Raises:
        UsageError: `E_USAGE`.
    """

    label_set: str = "seg"
    modality: str | None = None
    patient_pattern: str | None = None
    policy: Policy = field(default_factory=Policy)
    workers: int | None = None
    cluster: str | None = None
    dry_run: bool = False
    reread: bool = False
    report_path: Path | None = None
    key_file: Path | None = None
    structures: tuple[str, ...] | None = None
    seg_fraction: float | None = None
    settle_s: float = 0.0
    tables: TableChoice = field(default_factory=TableChoice)
    overlap: "Overlap" = "settle"
    channel: str | None = None
    channel_places: tuple[tuple[str, Path], ...] = ()

    def __post_init__(self) -> None:
        try:
            check_label_set(self.label_set)
        except ValueError as error:
            raise UsageError("E_USAGE", str(error)) from error
        modalities = get_args(Modality)
        if self.modality is not None and self.modality not in modalities:
            raise UsageError("E_USAGE", f"unknown modality {self.modality!r}", hint=f"one of {', '.join(modalities)}")
        for word in (*(() if self.channel is None else (same_channel(self.channel),)), *self.given.words):
            require_word(word)
        if self.patient_pattern is not None:
            from medssl_cli.formats.patients import patient_from_name

            patient_from_name("", self.patient_pattern)
        letters = (self.policy.assume_orientation or "RAS").upper()
        if sorted("RLAPIS".find(letter) // 2 for letter in letters) != [0, 1, 2]:
            raise UsageError("E_USAGE", "an orientation is three letters, one each of RL, AP and IS, such as RAS")

    @property
    def given(self) -> GivenChannels:
        """What the user says about channels, under the one word for each."""
        places = tuple((same_channel(word), path.resolve()) for word, path in self.channel_places)
        return GivenChannels(places, same_channel(self.channel or ""))

    @property
    def recorded(self) -> dict[str, Any]:
        """For the report: what changes which files are accepted, and how they are stored."""
        return {
            "label_set": self.label_set,
            "modality": self.modality,
            "has_patient_pattern": self.patient_pattern is not None,
            "structures": list(self.structures) if self.structures else None,
            "seg_fraction": self.seg_fraction,
            "overlap": self.overlap,
            "channel": ",".join(sorted(self.given.words)) or None,
            "key_column": self.tables.key_column,
            "label_columns": list(self.tables.label_columns) if self.tables.label_columns else None,
            "readers": self.tables.readers,
            "departures": self.policy.departures,
            **self._recorded_sizes,
        }

    @property
    def _recorded_sizes(self) -> dict[str, Any]:
        """What is said about the pictures that boxes were drawn on; nothing by default, so that `rules` stay."""
        size = {"box_size": list(self.tables.box_size)} if self.tables.box_size else {}
        return size | ({"box_copies": "stretched"} if self.tables.are_copies_stretched else {})

    @property
    def rules(self) -> str:
        """Digest of all that decides about what becomes of a file besides the file itself."""
        places = [(word, str(path)) for word, path in self.given.places]
        return sha256_json([self.recorded, *([places] if places else []), self.patient_pattern or "", __version__])
