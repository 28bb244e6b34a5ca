"""The walk over elements finds what pydicom finds: in real files, and in damaged ones that both of them accept."""

import io
import random
import warnings
from pathlib import Path

import pydicom
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.elements import Elements, walk
from medssl_cli.formats.dicom.headers import read_headers
from medssl_cli.formats.dicom.tags import SEQUENCES, WANTED_TAGS
from medssl_cli.formats.dicom.window import Window
from tests.dicom_factory import ct_series

FOLDERS = ("pydicom_test", "dcm_qa", "dicom2nifti", "rt_utils", "lidc_small", "torchio_dicom", "cxr_dicom_udacity")
CUT_OFF = {"rtplan_truncated.dcm", "DICOMDIR-nooffset"}  # pydicom returns what there is
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 65535)


@pytest.mark.real_data
@pytest.mark.parametrize("folder", FOLDERS)
def test_raw_values_of_real_files_are_those_of_pydicom(shared_data, folder):
    num_values = 0
    for path in sorted(path for path in (shared_data / folder).rglob("*") if path.is_file()):
        data = path.read_bytes()
        if data[128:132] != b"DICM" or path.name in CUT_OFF:
            continue
        elements = _walk(data)
        assert elements is not None, path.name
        num_values += _assert_same(elements, data)

    assert num_values > 30


def test_damaged_files_are_refused_or_read_as_pydicom_reads_them(tmp_path):
    """Single faults in the first 900 bytes: bits, bytes, lengths, cuts, repeats. Both must read the same values."""
    whole = ct_series(tmp_path)[0].read_bytes()
    num_accepted = 0
    for seed in range(1200):
        data = _mutant(whole, random.Random(seed))
        path = tmp_path / "mutant.dcm"
        path.write_bytes(data)
        # Whatever is not foreseen would carry the name of its class instead of a reason.
        refusal = _refusal(path)
        assert "cannot be parsed" not in refusal, seed
        if not refusal:
            num_accepted += 1
            elements = _walk(data)
            assert elements is not None
            _assert_same(elements, data, case=seed)

    assert num_accepted > 250


def _refusal(path: Path) -> str:
    try:
        read_headers(path)
    except InputError as error:
        return error.message
    return ""


def _walk(data: bytes) -> Elements | None:
    try:
        return walk(Window(data, len(data)))
    except InputError:
        return None


def _assert_same(elements: Elements, data: bytes, *, case: int | None = None) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        except Exception:  # noqa: BLE001 - pydicom raises anything on damaged files
            return 0
        num_values = 0
        for tag in WANTED_TAGS - SEQUENCES:
            theirs = dataset.get_item(tag).value if tag in dataset else None
            if isinstance(theirs, str):
                theirs = theirs.encode("latin-1")
            elif theirs is None and tag in dataset:
                theirs = b""
            own = elements.values.get(tag)
            assert own == theirs, (case, hex(tag))
            num_values += own is not None
    return num_values


def _mutant(data: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(132, min(900, len(data) - 8))
    kind = random_.randrange(6)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << random_.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes([random_.choice((0, 1, 0x7F, 0x80, 0xFF))]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + random_.choice(NUMBERS).to_bytes(4, "little") + data[at + 4 :]
    if kind == 3:
        return data[:at]
    size = random_.randrange(1, 64)
    return data[:at] + data[at + size :] if kind == 4 else data[: at + size] + data[at:]
