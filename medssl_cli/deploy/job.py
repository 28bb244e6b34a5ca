"""What is the same for all scans of one call, and where outputs go."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from medssl_cli.deploy.choosing import Part
from medssl_cli.deploy.known_results import KnownResults
from medssl_cli.deploy.mask_files import Output, Preview, stem_of_mask
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.scan_reader import ScanReader

Progress = Callable[[str, float, float], None]
"""Called with which scan of how many, tiles done and tiles in all."""

ACCEPT_WRITING: Final = "accept-risk"
"""The rule for writing in pictures where nobody gives another one: no privacy is at stake in a mask."""
DEFAULT_FOLDER: Final = Path("medssl-out")
REPORT: Final = "report.json"


class StoppedError(Exception):
    """A stop request came in the middle of a scan."""


@dataclass(frozen=True)
class Where:
    """Where outputs go: a folder, the one mask's file if that was named, and the report's file."""

    folder: Path
    mask: Path | None
    report: Path

    @classmethod
    def of(cls, out: Path | None, part: Part | None = None) -> "Where":
        """What `-o` means; a part of the work has a report of its own."""
        if out is None or not out.name.lower().endswith((".nii", ".nii.gz")):
            folder = DEFAULT_FOLDER if out is None else out
            return cls(folder, None, folder / (REPORT if part is None else f"report.{part.word}.json"))
        return cls(out.parent, out, out.parent / f"{stem_of_mask(out)}.{REPORT}")


@dataclass(frozen=True)
class Job:
    """What is the same for all scans of one call.

    Args:
        model: Segments.
        reader: Reads, with the repairs that were asked for.
        known: What earlier calls did.
        where: Outputs go.
        outputs: Which of them are wanted.
        overwrite: Outputs of medssl that were made from something else may be replaced.
        replaces_grown: Those of a DICOM series that has grown may be, if nobody changed them.
        preview: Draws a picture.
        progress: Told after every tile.
        dry_run: Compute and write nothing.
        plan: Nor that; say what memory each scan would take.
        is_stopped: Asked after every tile.
        inputs: Device and inode of every file that is read.
        call: What tells this call from others with the same model.
    """

    model: OnnxModel
    reader: ScanReader
    known: KnownResults
    where: Where
    outputs: tuple[Output, ...]
    overwrite: bool
    preview: Preview | None
    progress: Progress | None
    dry_run: bool
    is_stopped: Callable[[], bool]
    inputs: Container[tuple[int, int]] = frozenset()
    replaces_grown: bool = False
    call: int = 0
    plan: bool = False
