"""Out of the cache again: items and their labels as NIfTI, for any other tool and for checking this one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import MedsslError, StorageError
from medssl_cli.base.files import make_output_folder, write_json
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.formats.nifti import write_nifti

CASES: Final = "channels.json"


def export_items(
    cache: Cache,
    folder: Path,
    records: Sequence[ItemRecord],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write `<item_id>.nii.gz` and, for each label set, `<item_id>_<label_set>.nii.gz`.

    Voxels keep their dtype and order; both affines of the files are the item's. The same item gives the same bytes.
    Where items are channels of cases, `channels.json` says of each which channel of which case it is.

    Args:
        cache: Where the items are.
        folder: Made if it does not exist; files of the same names are replaced.
        records: Items to export.
        progress: Called with how many items are written, and of how many.

    Returns:
        The files written.

    Raises:
        MedsslError: The first item's failure, by name, after all others are written: `E_CACHE_CORRUPT`, or
            `E_OUTPUT_CHECK` if a file does not read back identically.
        StorageError: `E_IO`, at once.
    """
    make_output_folder(folder)
    written: list[Path] = []
    failures: list[tuple[str, MedsslError]] = []
    for done, record in enumerate(records):
        progress(done, len(records))
        try:
            written += _export(cache, folder, record)
        except StorageError:
            raise
        except MedsslError as error:
            failures.append((record.item_id, error))
    progress(len(records), len(records))
    cases = [_case(record) for record in records if record.channel or record.example_key]
    if cases:
        write_json(folder / CASES, {"items": cases}, is_output=True)
        written.append(folder / CASES)
    if failures:
        item_id, first = failures[0]
        others = f"; {len(failures) - 1} other items failed too" if len(failures) > 1 else ""
        message = f"{item_id}: {first.message}{others}; {len(written)} files are written"
        raise type(first)(first.code, message, hint=first.hint) from first
    return written


def _case(record: ItemRecord) -> dict[str, str | None]:
    return {
        "file": f"{record.item_id}.nii.gz",
        "channel": record.channel,
        "example": record.example_key,
        "patient": record.patient_key,
    }


def _export(cache: Cache, folder: Path, record: ItemRecord) -> list[Path]:
    volumes = {record.item_id: cache.read_image(record)}
    volumes |= {f"{record.item_id}_{name}": cache.read_label(record, name) for name in sorted(record.labels)}
    paths = {folder / f"{stem}.nii.gz": volume for stem, volume in volumes.items()}
    for path, volume in paths.items():
        write_nifti(path, volume.voxels[0], volume.affine)
    return list(paths)
