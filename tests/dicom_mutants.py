"""Damaged DICOM files by number, and what becomes of each: a code, or an image that a second derivation confirms."""

import io
import os
import struct
import tempfile
import traceback
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import group_headers, read_headers, read_series
from medssl_cli.formats.labels import MaskLabel
from medssl_cli.formats.policy import Policy
from medssl_cli.ingest.failures import Failure
from medssl_cli.ingest.labels import ReadTask, read_annotations
from tests.conftest import find_shared_data
from tests.dicom_factory import analytic_phantom, edit, write_volume
from tests.dicom_oracle import UnderivableError, check
from tests.mutants import FAULTS, damaged, flip
from tests.unit import test_dicom_enhanced as enhanced
from tests.unit import test_dicom_mosaic as mosaic
from tests.unit import test_labels_rtstruct as rtstruct
from tests.unit import test_labels_seg as seg

POLICY = Policy(min_slices=1, burned_in="accept")
REAL_BYTES = 200_000
SHAPE = (40, 36, 4)  # the smallest that JPEG 2000 divides five times
Task = tuple[str, int]


@lru_cache(maxsize=2)
def seeds(with_real: bool = False) -> dict[str, list[bytes]]:
    """Sound files by kind; of a series all its files."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        found = {kind: make(folder / kind) for kind, make in _MAKERS.items()}
        for kind in ("seg", "rtstruct", "mosaic", "enhanced"):
            (folder / kind).mkdir(exist_ok=True)
        found["mosaic"] = [mosaic._mosaic(folder / "mosaic").read_bytes()]
        found["enhanced"] = [enhanced._enhanced_mr(folder / "enhanced" / "a").read_bytes()]
        found["seg"] = [seg.seg(folder / "seg" / "a", seg.slices_of(seg.blocks(), seg.oblique())).read_bytes()]
        outlines = {"Heart": [rtstruct.square(3.5, 4.5, 9.5, 20.5, 2)]}
        found["rtstruct"] = [
            rtstruct.structure_set(folder / "rtstruct" / "a", outlines, rtstruct.oblique()).read_bytes()
        ]
    return found | (_real() if with_real else {})


def mutant_of(kind: str, number: int, with_real: bool = False) -> list[bytes]:
    """The files of a kind, one of them damaged."""
    generator = np.random.default_rng([number, *kind.encode()])
    files = list(seeds(with_real)[kind])
    at = number % len(files)
    # Blind damage rarely survives parsing; every other mutant is well formed and lies.
    faults = (lie,) if generator.random() < 0.5 else FAULTS
    files[at] = damaged(files[at], generator, faults=faults)
    return files


def lie(data: bytearray, at: int, generator: np.random.Generator) -> None:
    """Another value, well coded, for an element that the image depends on; a flipped bit where it is not found."""
    tag = int(generator.choice(_LIED_ABOUT))
    for order in ("<", ">"):
        start = data.find(struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF), 132)
        if start >= 0 and len(data) >= start + 8:
            break
    else:
        return flip(data, at, generator)
    is_explicit = bytes(data[start + 4 : start + 6]).isalpha()
    width, place = (f"{order}H", start + 6) if is_explicit else (f"{order}I", start + 4)
    (length,) = struct.unpack_from(width, data, place)
    old = bytes(data[start + 8 : start + 8 + length])
    if tag >> 16 == 0x28 and tag & 0xFFFF < 0x200 and length == 2:
        value = struct.pack(f"{order}H", int(generator.choice(_WORDS)))
    elif generator.random() < 0.5 and any(48 <= byte < 58 for byte in old):
        digits = [index for index, byte in enumerate(old) if 48 <= byte < 58]
        value = bytearray(old)
        value[int(generator.choice(digits))] = int(generator.integers(48, 58))
    else:
        value = _TEXTS[int(generator.integers(len(_TEXTS)))]
        value += b" " * (len(value) % 2)
    data[start + 8 : start + 8 + length] = value
    struct.pack_into(width, data, place, len(value))
    return None


_WORDS = (0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 15, 16, 18, 20, 24, 31, 32, 36, 40, 64, 72, 80, 4096, 32767, 65535)
_TEXTS = (
    b"", b"0", b"-1", b"1", b"4", b"0.5", b"-0.0", b"1e-320", b"1e308", b"1e999", b"nan", b"inf", b"0,7", b"0x10",
    b"1_0", b"2147483647", b"99999999999999999999", b"0\\0\\0", b"1\\1", b"0.9\\0.7", b"1e5\\1e5", b"1\\0\\0\\0\\1\\0",
    b"0\\0\\1\\0\\1\\0", b"MONOCHROME1", b"RGB", b"PALETTE COLOR", b"CT", b"MR", b"PT", b"YES", b"LOCALIZER",
    b"DERIVED\\SECONDARY\\MIP", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.5",
    b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.5.1.4.1.1.2.1", b"1.2.840.10008.5.1.4.1.1.7",
    b"\xd9\xa1", b"%s%n", b"A" * 4098,
)  # fmt: skip
_LIED_ABOUT = (
    0x00020010, 0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x00100020, 0x00180050, 0x00180088, 0x00181164,
    0x0020000D, 0x0020000E, 0x00200013, 0x00200032, 0x00200032, 0x00200037, 0x00200037, 0x00200052, 0x00280002,
    0x00280004, 0x00280008, 0x00280010, 0x00280011, 0x00280030, 0x00280030, 0x00280100, 0x00280101, 0x00280102,
    0x00280103, 0x00280301, 0x00281052, 0x00281053, 0x00540016, 0x00541001, 0x00541102, 0x00101030, 0x00181074,
    0x00181075, 0x00080031, 0x00080032, 0x00281051, 0x00280120, 0x00620001, 0x30060050, 0x00189087, 0x00209228,
)  # fmt: skip


def judge(task: Task) -> str:
    """The code of the refusal, "read", or a text that starts with a word in capitals: what went wrong."""
    kind, number = task
    return _verdict(kind, mutant_of(kind, number, kind not in seeds()))


def judge_sound(kind: str) -> str:
    """As `judge`, of the files without damage."""
    return _verdict(kind, seeds()[kind])


def _verdict(kind: str, files: list[bytes]) -> str:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = [Path(folder, f"{position}.dcm") for position in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        try:
            return _judge_labels(kind, paths[0]) if kind in ("seg", "rtstruct") else judge_images(paths)
        except AssertionError as error:
            return f"DISAGREES {error} {_place(error)}"
        except UnderivableError as error:
            return f"UNDERIVABLE {error}"
        except Exception as error:  # noqa: BLE001
            return f"ESCAPED {type(error).__name__} {_place(error)}"


def judge_images(paths: list[Path], policy: Policy = POLICY) -> str:
    """What becomes of files that are read together; every refusal has a code and quotes nothing."""
    headers, codes = [], []
    for path in paths:
        try:
            headers += read_headers(path, policy)
        except InputError as error:
            codes.append(_checked(error, paths))
    parts, refusals = group_headers(headers, policy)
    codes += [refusal.code for refusal in refusals]
    assert {header.source for header in headers} == {header.source for part in parts for header in part.headers} | {
        source for refusal in refusals for source in refusal.files
    }, "a file is lost"
    for part in parts:
        try:
            image = read_series(part, policy)
        except InputError as error:
            codes.append(_checked(error, paths))
            continue
        assert np.isfinite(image.volume.voxels).all()
        check(image, part)
    assert set(codes) <= {*CODES, "DUPLICATE"}
    return codes[0] if codes else "read"


def _judge_labels(kind: str, path: Path) -> str:
    found = read_annotations(ReadTask(path, kind))
    if isinstance(found, Failure):
        assert found.code in CODES
        return found.code
    reader = {"seg": seg.read_seg, "rtstruct": rtstruct.read_rtstruct}[kind]
    shape, affine = {"seg": (seg.SHAPE, seg.oblique()), "rtstruct": (rtstruct.SHAPE, rtstruct.oblique())}[kind]
    label = reader(path)
    assert isinstance(label, MaskLabel)
    try:
        marks = label.to_grid(shape, affine)
    except InputError as error:
        return _checked(error, [path])
    assert set(np.unique(marks)) <= {0, *label.classes}
    return "read"


def _checked(error: InputError, paths: list[Path]) -> str:
    assert len(error.message) <= 300
    assert not any(str(path) in f"{error.message} {error.hint}" for path in paths)
    return error.code


def _place(error: BaseException) -> str:
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-3:])


def _ct(folder: Path, **attributes: Any) -> list[Path]:
    phantom = analytic_phantom(shape=SHAPE)
    paths = write_volume(folder, phantom)
    for path in paths:
        edit(path, SliceThickness="2.5", BurnedInAnnotation="NO", **attributes)
    return paths


def _first(paths: list[Path]) -> list[bytes]:
    return [paths[1].read_bytes()]


def _coded(syntax: UID, *, kind: str = "") -> Callable[[Path], list[bytes]]:
    """One slice of the phantom in another transfer syntax."""

    def make(folder: Path) -> list[bytes]:
        (_, path, *_) = _mr(folder) if kind == "MR" else _ct(folder)
        dataset = pydicom.dcmread(path)
        if syntax.is_compressed and not syntax.is_deflated:
            dataset.compress(syntax, encoding_plugin="", generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        stream = io.BytesIO()
        little = syntax != ExplicitVRBigEndian
        pydicom.dcmwrite(
            stream,
            dataset,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=little,
            force_encoding=True,
        )
        return [stream.getvalue()]

    return make


def _mr(folder: Path) -> list[Path]:
    paths = _ct(folder)
    for path in paths:
        edit(path, SOPClassUID="1.2.840.10008.5.1.4.1.1.4", Modality="MR", RescaleType="US", RescaleSlope="1.25")
    return paths


def _pet(folder: Path) -> list[bytes]:
    tracer = Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "370000000", "6586.2"
    tracer.RadiopharmaceuticalStartTime = "100000"
    changes = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Modality": "PT", "Units": "BQML", "DecayCorrection": "START",
        "CorrectedImage": ["ATTN", "DECY"], "SeriesTime": "110000", "AcquisitionTime": "110000", "PatientWeight": "70",
        "RadiopharmaceuticalInformationSequence": [tracer], "RescaleSlope": "2.5", "RescaleIntercept": "0",
    }  # fmt: skip
    paths = _ct(folder)
    for path in paths:
        edit(path, **changes)
    return _first(paths)


def _dx(folder: Path, **attributes: Any) -> list[bytes]:
    (path, *_) = _ct(folder)
    edit(
        path, SOPClassUID="1.2.840.10008.5.1.4.1.1.1", Modality="CR", ImagePositionPatient=None,
        ImageOrientationPatient=None, PixelSpacing=None, ImagerPixelSpacing=["0.2", "0.15"], RescaleType="US",
        PixelRepresentation=0, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1", **attributes,
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    values = np.frombuffer(dataset.PixelData, "<i2").astype(np.uint16) & 0xFFF
    edit(path, PixelData=values.tobytes(), RescaleIntercept="0")
    return [path.read_bytes()]


def _jpeg(folder: Path) -> list[bytes]:
    (path, *_) = _ct(folder)
    grey = (np.arange(36 * 40).reshape(36, 40) % 256).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG")
    dataset = pydicom.dcmread(path)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset.save_as(path)
    return [path.read_bytes()]


def _series(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in _ct(folder)]


_MAKERS: dict[str, Callable[[Path], list[bytes]]] = {
    "ct": lambda folder: _first(_ct(folder)),
    "mr": lambda folder: _first(_mr(folder)),
    "implicit": _coded(ImplicitVRLittleEndian),
    "big": _coded(ExplicitVRBigEndian),
    "deflated": _coded(DeflatedExplicitVRLittleEndian),
    "rle": _coded(RLELossless),
    "jpeg-ls": _coded(JPEGLSLossless, kind="MR"),
    "j2k": _coded(JPEG2000Lossless),
    "jpeg": _jpeg,
    "pet": _pet,
    "cr": _dx,
    "series": _series,
}


def _real() -> dict[str, list[bytes]]:
    """Small real files, one for each transfer syntax and kind of object, where they are at hand."""
    root = find_shared_data()
    found: dict[str, list[bytes]] = {}
    for path in sorted(root.rglob("*")) if root and os.environ.get("MEDSSL_FUZZ_REAL") else []:
        if not path.is_file() or not 1000 < path.stat().st_size < REAL_BYTES:
            continue
        data = path.read_bytes()
        if data[128:132] != b"DICM":
            continue
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
            kind = f"real {dataset.file_meta.TransferSyntaxUID.name} {dataset.SOPClassUID.name}"
        except Exception:  # noqa: BLE001
            continue
        found.setdefault(kind, [data])
    return found
