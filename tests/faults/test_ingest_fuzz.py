"""Whole ingests of hostile folders: every file ends in one state, with a code, and nothing dies, leaks or swells.

`MEDSSL_FUZZ` multiplies the number of mutants, `MEDSSL_FUZZ_SEED` is the number of the first one.
"""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medssl_cli.base.errors import CODES
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from tests.dicom_mutants import POLICY
from tests.dicom_mutants import mutant_of as dicom_mutant
from tests.dicom_mutants import seeds as dicom_seeds
from tests.environment import ENVIRONMENT
from tests.faults.test_format_fuzz import SOUND, chunk
from tests.faults.test_format_fuzz import mutant_of as format_mutant
from tests.faults.test_zip_fuzz import mutant_of as zip_mutant
from tests.mutants import damaged
from tests.unit.test_labels_fuzz import SEEDS as LABELS
from tests.zip_factory import zeros

SCALE = int(os.environ.get("MEDSSL_FUZZ", "1"))
FIRST = int(os.environ.get("MEDSSL_FUZZ_SEED", "0"))
CANARY = b"Xq7"
TEXT_LABELS = {"lidc": "xml", "coco": "json", "luna": "csv", "table": "csv"}
GIB = 2**30
SIDE = 32_767  # of the largest picture that is taken
_MEASURE = """
import json, resource, sys
from pathlib import Path
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.formats.policy import Policy
options = IngestOptions(workers=1, policy=Policy(min_slices=1, burned_in="accept"))
report = ingest([Path(sys.argv[1])], Path(sys.argv[2]), options)
status = Path("/proc/self/status")  # getrusage of a new program remembers the process that started it
lines = status.read_text().splitlines() if status.is_file() else []
own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
peaks = [1024 * value for value in (resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, *own)]
print(json.dumps([report.by_code, report.counts, peaks]))
"""


def hostile_folder(folder: Path, first: int) -> int:
    """Mutants of every format under names that give the word away; returns how many files."""
    folder.mkdir()
    kinds = list(dicom_seeds())
    for number in range(first, first + 32 * SCALE):
        kind = kinds[number % len(kinds)]
        for position, data in enumerate(dicom_mutant(kind, number)):
            (folder / f"Xq7-{number}-{position}").write_bytes(data.replace(b"Phantom^Test", b"Xq7^Xq7^Test"))
    for kind in SOUND:
        for number in range(first, first + 4 * SCALE):
            (folder / f"Xq7-{kind}-{number}").write_bytes(format_mutant(kind, number))
    for number in range(first, first + 4 * SCALE):
        (folder / f"Xq7-{number}.zip").write_bytes(zip_mutant(number))
    return len(list(folder.iterdir()))


def add_damaged_labels(folder: Path, scratch: Path, first: int) -> None:
    for kind, suffix in TEXT_LABELS.items():
        (scratch / kind).mkdir()
        data, _, _ = LABELS[kind](scratch / kind)
        for number in range(first, first + 4 * SCALE):
            generator = np.random.default_rng([number, *kind.encode()])
            (folder / f"Xq7-{kind}-{number}.{suffix}").write_bytes(damaged(data, generator, head_bytes=200))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_file_of_a_hostile_folder_is_accounted_for(tmp_path, capfd, workers):
    first = FIRST + 1000 * workers * SCALE
    num_files = hostile_folder(tmp_path / "in", first)
    add_damaged_labels(tmp_path / "in", tmp_path, first)

    report = ingest([tmp_path / "in"], tmp_path / "cache", IngestOptions(workers=workers, policy=POLICY))

    document = report.to_json()
    counts = document["counts"]
    assert counts["seen"] >= num_files - 4 * SCALE
    assert counts["seen"] == sum(counts[state] for state in ("accepted", "duplicate", "skipped", "quarantined"))
    assert counts["accepted"] > 0
    assert set(report.by_code) <= CODES.keys()
    assert not {"E_WORKER_CRASH", "E_WORKER_OOM", "E_DECODER_CRASH"} & report.by_code.keys(), report.by_code
    assert not any(capfd.readouterr())
    for text in (json.dumps(document).encode(), *map(Path.read_bytes, _files(tmp_path / "cache"))):
        assert CANARY not in text
        assert bytes(tmp_path) not in text


def test_a_second_run_of_a_hostile_folder_stores_nothing(tmp_path):
    hostile_folder(tmp_path / "in", FIRST)
    first, second = (
        ingest([tmp_path / "in"], tmp_path / "cache", IngestOptions(workers=1, policy=POLICY, reread=True))
        for _ in range(2)
    )

    assert first.num_images > 0
    assert (second.num_images, second.num_labels) == (0, 0)
    assert second.fingerprint == first.fingerprint


def _files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert len(found) > 3
    return found


def test_small_files_that_claim_much_cost_little(tmp_path):
    """Nothing here is larger than 10 MB; neither a worker nor the parent may hold more than 2 GB."""
    folder = tmp_path / "in"
    folder.mkdir()
    expected = write_claims(folder)
    assert max(path.stat().st_size for path in folder.iterdir()) <= 10 * 2**20

    command = [sys.executable, "-c", _MEASURE, str(folder), str(tmp_path / "cache")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=True, text=True)

    by_code, counts, peaks = json.loads(done.stdout)
    assert max(peaks) <= 2 * GIB, [f"{peak / GIB:.2f} GiB" for peak in peaks]
    assert by_code == expected
    assert counts["accepted"] == 0
    assert not done.stderr


def write_claims(folder: Path) -> Counter[str]:
    """Files that promise far more than they hold, and how many are expected under each code."""
    claims: dict[str, tuple[bytes, str]] = {
        **_dicom_claims(),
        "bomb.nii.gz": (_gzip_bomb(SOUND["nifti"][0]), "E_GZ_BOMB"),
        "4d.nii": (_with(SOUND["nifti"][0], 40, struct.pack("<8h", 7, *[32767] * 7)), "E_4D_INPUT"),
        "huge.nii": (_with(SOUND["nifti"][0], 40, struct.pack("<8h", 3, *[32767] * 3, 1, 1, 1, 1)), "E_TOO_BIG"),
        "bomb.nrrd": (_nrrd_bomb(), "E_GZ_BOMB"),
        "wide.png": (_picture(30_000), "E_TOO_BIG"),
        "deep.json": (b'{"images": [], "categories": [], "annotations": [' + b"[" * 10**6, "E_LABEL_FORMAT"),
    }
    for name, (data, _) in claims.items():
        (folder / name).write_bytes(data)
    return Counter(code for _, code in claims.values())


def _with(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def _gzip_bomb(head: bytes) -> bytes:
    """A sound start and a GiB of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + zeros(GIB)[0]


def _nrrd_bomb() -> bytes:
    head, _ = SOUND["nrrd"][1].split(b"\n\n", 1)
    return head + b"\n\n" + _gzip_bomb(b"")


def _picture(side: int) -> bytes:
    """A PNG of one bit per pixel without pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    )


def _dicom_claims() -> dict[str, tuple[bytes, str]]:
    """One slice each: enormous matrices, frames, streams, nests."""
    huge = {"Rows": SIDE, "Columns": SIDE}
    large = {"Rows": 8_192, "Columns": 8_192}  # the most that a decoder is shown
    private = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, GIB - 1)
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, GIB - 2)
    nest = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF) + 20_000 * (
        struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    )
    many = b"".join(struct.pack("<HH2sH", 0x0009, 0x1100 + number % 0x4000, b"LO", 0) for number in range(300_000))
    return {
        **{kind: (_lying(kind, **huge), "E_TOO_BIG") for kind in ("rle", "j2k", "jpeg", "jpeg-ls")},
        "rle-8k": (_lying("rle", **large), "E_TRUNCATED"),
        **{f"{kind}-8k": (_lying(kind, **large), "E_TRUNCATED") for kind in ("jpeg", "jpeg-ls")},
        "native": (_lying("ct", **huge), "E_PIXEL_LENGTH"),
        "wide": (_lying("ct", Rows=65535, Columns=65535), "E_VALUE_INVALID"),
        "frames": (_lying("enhanced", NumberOfFrames=2**31 - 1), "E_TOO_BIG"),
        "cine": (_lying("ct", NumberOfFrames=2**31 - 1), "E_ENHANCED_UNSUPPORTED"),
        "deflated-header": (_deflate_bomb(private), "E_DEFLATE_BOMB"),
        "deflated-pixels": (_deflate_bomb(pixels), "E_DEFLATE_BOMB"),
        "nest": (_with_elements(nest), "E_DICOM_DEPTH"),
        "many": (_with_elements(many), "E_DICOM_TOO_BIG"),
    }


def _lying(kind: str, **attributes: Any) -> bytes:
    """A sound slice whose header, and codestream if it has one, says something else."""
    dataset = pydicom.dcmread(io.BytesIO(dicom_seeds()[kind][0]))
    for name, value in {**attributes, "SeriesInstanceUID": f"1.2.{zlib.crc32(f'{kind}{attributes}'.encode())}"}.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream)
    data = bytearray(stream.getvalue())
    if "Rows" in attributes:
        size = struct.pack(">HH", attributes["Rows"], attributes["Columns"])
        for marker in (b"\xff\xc0\x00", b"\xff\xf7\x00"):
            if (at := data.find(marker, data.find(b"\xff\xd8\xff"))) >= 0:
                data[at + 5 : at + 9] = size
        if (at := data.find(b"\xff\x4f\xff\x51")) >= 0:
            sides = struct.pack(">II", attributes["Columns"], attributes["Rows"])
            data[at + 8 : at + 16] = data[at + 24 : at + 32] = sides
    return bytes(data)


def _with_elements(elements: bytes) -> bytes:
    """Elements between groups 0008 and 0010 of a sound slice."""
    data = dicom_seeds()["ct"][0]
    at = data.index(b"\x10\x00\x10\x00PN")
    return data[:at] + elements + data[at:]


def _deflate_bomb(last: bytes) -> bytes:
    """A sound header up to the patient, then an element of a GiB of zeros, or the pixel data of that size."""
    sound = dicom_seeds()["ct"][0]
    dataset = pydicom.dcmread(io.BytesIO(sound))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    stream = io.BytesIO()
    dataset.save_as(stream)
    whole = stream.getvalue()
    length = struct.unpack_from("<I", whole, 140)[0]
    meta, plain = whole[: 144 + length], zlib.decompress(whole[144 + length :], -15)
    mark = b"\xe0\x7f\x10\x00" if last.startswith(b"\xe0\x7f") else b"\x10\x00\x10\x00PN"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(plain[: plain.index(mark)] + last) + packer.flush(zlib.Z_FULL_FLUSH)
    return meta + head + zeros(GIB)[0]
