"""Unique words, dates and numbers, planted wherever a source can hold text, and the search for them elsewhere.

A word is valid in every text representation of DICOM (PS3.5 6.2), has no meaning, and does not occur by chance. Every
one begins alike, so one search finds them all, in any encoding where ASCII is itself or has zeros between the letters.
"""

import base64
import contextlib
import gzip
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pydicom
from PIL import Image, PngImagePlugin
from pydicom.datadict import DicomDictionary, keyword_dict
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.dicom_factory import ct_series
from tests.zip_factory import Raw, zip_bytes

ACCENTED = "ÄzqÖxjÜ"
SOURCE_TIME_S = 1_234_567_891
SOURCE_TIME_NS = SOURCE_TIME_S * 10**9 + 123_456_789
STORAGE = "1.2.840.10008.5.1.4.1.1."
SOP_CLASSES = {"CT": "2", "MR": "4", "PT": "128", "DX": "1.1", "enhanced": "4.1"}
MODALITIES = tuple(SOP_CLASSES)

_NEEDLES = re.compile(
    rb"(?P<word>zqxjvk[0-9a-z]{4})|(?P<number>9182736\d{0,6})|(?P<time>03:?05:?07\.9182\d\d)"
    rb"|(?P<date>1943([-/.]?)(0[1-9]|1[0-2])\5(0[1-9]|[12]\d)|(0[1-9]|[12]\d)[-/.](0[1-9]|1[0-2])[-/.]1943)"
)
_WHOLE = {
    "accented": [ACCENTED.encode(code) for code in ("utf-8", "latin-1", "utf-16-le", "utf-16-be")]
    + [ACCENTED.encode("ascii", handler) for handler in ("backslashreplace", "xmlcharrefreplace")]
    + [b"\\u00c4zq\\u00d6xj"],
    "times of files": [str(SOURCE_TIME_S).encode(), b"2009-02-13"]
    + [struct.pack(code, SOURCE_TIME_S) for code in ("<I", ">I", "<d", ">d")]
    + [struct.pack(code, SOURCE_TIME_NS) for code in ("<q", ">q")],
}
_PICTURES = re.compile(rb"base64,([A-Za-z0-9+/=]+)")

# What says of which kind an object is, or how its voxels are read and placed.
DECIDING = {
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "Modality", "PhotometricInterpretation", "BurnedInAnnotation",
    "PixelSpacingCalibrationType", "RescaleType", "LossyImageCompression", "Units", "DecayCorrection", "CorrectedImage",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ModalityLUTSequence", "PixelDataProviderURL",
    "RadiopharmaceuticalInformationSequence", "DataSetTrailingPadding", "PatientID",
}  # fmt: skip
WORDS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
DATES = {"DA", "DT", "TM"}


@dataclass
class Canaries:
    """Hands out canaries and remembers the words."""

    words: set[str] = field(default_factory=set)
    count: int = 0

    def word(self) -> str:
        """A new word of ten letters and digits."""
        self.count += 1
        word = f"ZQXJVK{self.count:04X}"
        self.words.add(word.lower())
        return word

    def words_of(self, number: int) -> list[str]:
        """Several new words."""
        return [self.word() for _ in range(number)]

    def value(self, vr: str) -> str:
        """A new value of some kind; the dates are 336, and then begin anew."""
        self.count += vr in DATES or vr == "UI"
        date = f"1943{self.count // 28 % 12 + 1:02}{self.count % 28 + 1:02}"
        time = f"030507.9182{self.count % 100:02}"
        special = {"DA": date, "TM": time, "DT": date + time, "UI": f"1.2.826.0.1.9182736.{self.count}"}
        if vr == "PN":
            return f"{self.word()}^{self.word()}^{ACCENTED}"
        return special[vr] if vr in special else self.word()

    def dataset(self, groups: set[int] | None = None) -> Dataset:
        """Every attribute of the dictionary (of some groups) that holds text, a date, a UID, bytes or a sequence."""
        filled = Dataset()
        for tag, vr, _ in attributes():
            if groups is not None and tag >> 16 not in groups:
                continue
            if vr == "SQ":
                filled.add_new(tag, vr, self._nested(tag, depth=1 + self.count % 3))
            elif vr == "OB":
                filled.add_new(tag, vr, self.word().encode())
            else:
                filled.add_new(tag, vr, self.value(vr))
        filled.PatientID = f"9182736{self.count:03}"
        self._private(filled)
        return filled

    def _nested(self, tag: int, depth: int) -> Sequence:
        item = Dataset()
        item.add_new(0x00080104, "LO", self.word())
        if depth > 1:
            item.add_new(tag, "SQ", self._nested(tag, depth - 1))
        return Sequence([item])

    def _private(self, dataset: Dataset) -> None:
        """Private elements, an overlay, a curve, unknown elements, and padding after the pixels."""
        for group in (0x0009, 0x0029, 0x2001):
            block = dataset.private_block(group, self.word(), create=True)
            block.add_new(0x10, "LO", self.word())
            block.add_new(0x11, "UN", self.word().encode())
            block.add_new(0x12, "SQ", self._nested(0x00081140, 2))
        for tag, vr, value in (
            (0x60000010, "US", 4), (0x60000011, "US", 20), (0x60000022, "LO", self.word()),
            (0x60000040, "CS", "G"), (0x60000050, "SS", [1, 1]), (0x60001500, "LO", self.word()),
            (0x60003000, "OB", self.word().encode()), (0x50000022, "LO", self.word()),
            (0x50003000, "OB", self.word().encode()), (0x00091999, "UN", self.word().encode()),
            (0xFFFCFFFC, "OB", self.word().encode()),
        ):  # fmt: skip
            dataset.add_new(tag, vr, value)


def attributes() -> list[tuple[int, str, str]]:
    """Number, representation and keyword of what is planted, in order."""
    wanted = WORDS | DATES | {"UI", "SQ", "OB"}
    return [
        (tag, vr, keyword)
        for keyword, tag in sorted(keyword_dict.items(), key=lambda pair: pair[1])
        if (vr := DicomDictionary.get(tag, ("",))[0]) in wanted
        and keyword not in DECIDING
        and tag >> 16 not in (0x0000, 0x0002, 0x0004, 0x7FE0)
    ]


def plant_series(
    folder: Path, modality: str, canaries: Canaries, filled: Dataset | None = None, *, lowest_mm: int = 0
) -> list[Path]:
    """A series of five slices (one picture, one multi-frame object) with canaries in everything that may hold them.

    Args:
        folder: Gets a subfolder whose name is a canary.
        modality: Of `MODALITIES`.
        canaries: Where they come from.
        filled: Their data set; by default with all attributes there are.
        lowest_mm: Where the series begins, so that its voxels differ from another's.
    """
    place = folder / canaries.word()
    filled = canaries.dataset() if filled is None else filled
    heights = [lowest_mm + height for height in ([0] if modality == "DX" else [0, 5, 10, 15, 20])]
    uid = canaries.value("UI")
    slices = [(path, pydicom.dcmread(path)) for path in ct_series(place, positions_mm=heights)]
    if modality == "enhanced":
        for path, _ in slices[1:]:
            path.unlink()
        slices = [(slices[0][0], _enhanced([dataset for _, dataset in slices], canaries))]
    paths = []
    for number, (path, dataset) in enumerate(slices):
        dataset.update({element.tag: element for element in filled})
        _become(dataset, modality)
        dataset.SpecificCharacterSet = "ISO_IR 192" if modality in ("CT", "DX") else "ISO_IR 100"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = STORAGE + SOP_CLASSES[modality]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{number}"
        dataset.SeriesInstanceUID = uid
        dataset.preamble = (canaries.word() + ACCENTED).encode().ljust(128, b"\0")
        dataset.file_meta.ImplementationVersionName = canaries.word()
        dataset.file_meta.SourceApplicationEntityTitle = canaries.word()
        target = path.with_name(f"{canaries.word()} {ACCENTED}-{number}.dcm")
        dataset.save_as(target)
        path.unlink()
        paths.append(target)
    return paths


def _become(dataset: Dataset, modality: str) -> None:
    """What makes the object one of its modality, whatever was planted."""
    dataset.Modality = {"enhanced": "MR"}.get(modality, modality)
    if modality == "DX":
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleType"):
            delattr(dataset, name)
        dataset.ImagerPixelSpacing = [0.2, 0.2]
    elif modality != "CT":
        dataset.RescaleType = "US"
    if modality == "PT":
        dataset.Units, dataset.DecayCorrection, dataset.CorrectedImage = "BQML", "START", ["DECY", "ATTN", "SCAT"]
        dataset.PatientWeight = "71.5"
        dataset.SeriesDate = dataset.AcquisitionDate = "19430217"
        dataset.SeriesTime = dataset.AcquisitionTime = "030507.918200"
        dose = Dataset()
        dose.RadionuclideTotalDose, dose.RadionuclideHalfLife = "3.7E8", "6586.2"
        dose.RadiopharmaceuticalStartTime = "020507.918200"
        dataset.RadiopharmaceuticalInformationSequence = [dose]


def _item(**values: object) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _enhanced(slices: list[Dataset], canaries: Canaries) -> Dataset:
    """Enhanced multi-frame (PS3.3 C.7.6.16), with words inside of the functional groups."""
    whole = slices[0]
    position = [slice_.ImagePositionPatient for slice_ in slices]
    measures = _item(PixelSpacing=whole.PixelSpacing, SliceThickness=5, PatientComments=canaries.word())
    plane = _item(ImageOrientationPatient=whole.ImageOrientationPatient)
    scale = _item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")
    whole.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[measures],
            PlaneOrientationSequence=[plane],
            PixelValueTransformationSequence=[scale],
            FrameAnatomySequence=[_item(FrameLaterality=canaries.word())],
        )
    ]
    whole.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=place)],
            FrameContentSequence=[_item(FrameComments=canaries.word(), FrameAcquisitionDateTime=canaries.value("DT"))],
        )
        for place in position
    ]
    whole.NumberOfFrames = len(slices)
    whole.PixelData = b"".join(slice_.PixelData for slice_ in slices)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(whole, name)
    return whole


def plant_zip(folder: Path, paths: Iterable[Path], canaries: Canaries) -> Path:
    """Files in an archive; words in its name, its members' names and its comment."""
    members = [Raw(f"{path.parent.name}/{path.name}".encode(), path.read_bytes()) for path in paths]
    target = folder / f"{canaries.word()}.zip"
    target.write_bytes(zip_bytes(*members, comment=canaries.word().encode()))
    return target


def plant_volumes(folder: Path, canaries: Canaries) -> list[Path]:
    """NIfTI, NRRD and MetaImage with words in every free text."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels = np.arange(120, dtype=np.int16).reshape(4, 5, 6, order="F")
    header = nibabel.Nifti1Header()
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        header[name] = canaries.word().encode()
    image = nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1]), header)
    for code in ("comment", "dicom", "afni"):
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, canaries.word().encode()))
    nifti = folder / f"{canaries.word()}_{ACCENTED}.nii.gz"
    packed = io.BytesIO()
    with gzip.GzipFile(canaries.word(), "wb", fileobj=packed, mtime=SOURCE_TIME_S) as stream:
        stream.write(image.to_bytes())
    nifti.write_bytes(packed.getvalue())
    nrrd = folder / f"{canaries.word()}.nrrd"
    words = canaries.words_of(4)
    nrrd.write_bytes(
        (
            f"NRRD0005\n# {words[0]} {ACCENTED}\ntype: short\ndimension: 3\nspace: left-posterior-superior\n"
            f"sizes: 4 5 6\nspace directions: (2,0,0) (0,2,0) (0,0,2)\nkinds: domain domain domain\nendian: little\n"
            f"encoding: raw\nspace origin: (1,2,3)\ncontent: {words[1]}\n{words[2]}:={words[3]} {ACCENTED}\n\n"
        ).encode()
        + (voxels + 1).tobytes(order="F")
    )
    meta = folder / f"{canaries.word()}.mha"
    words = canaries.words_of(3)
    meta.write_bytes(
        (
            f"ObjectType = Image\nNDims = 3\nComment = {words[0]}\nName = {words[1]}\nBinaryData = True\n"
            "BinaryDataByteOrderMSB = False\nCompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
            "Offset = 1 2 3\nElementSpacing = 2 2 2\nDimSize = 4 5 6\n"
            f"PatientName = {words[2]}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        ).encode()
        + (voxels + 2).tobytes(order="F")
    )
    return [nifti, nrrd, meta]


def plant_pictures(folder: Path, canaries: Canaries) -> list[Path]:
    """PNG, JPEG and TIFF with words in every kind of text, and the tables that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    for tag in (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298):  # description, make, model, software, artist, rights
        exif[tag] = canaries.word()
    exif[0x0132] = "1943:02:17 03:05:07"
    grey = np.arange(80, dtype=np.uint8).reshape(8, 10)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", canaries.word())
    text.add_text(canaries.word(), canaries.word())
    text.add_itxt("Title", canaries.word(), "de", canaries.word())
    names = [folder / f"{canaries.word()}.{suffix}" for suffix in ("png", "jpg", "tif")]
    Image.fromarray(grey).save(names[0], pnginfo=text, exif=exif)
    Image.fromarray(grey + 1).save(names[1], exif=exif, comment=canaries.word().encode())
    Image.fromarray(grey + 2).save(names[2], exif=exif)
    rows = [f"{name.name},1,{canaries.word()},1943-02-17,{ACCENTED}" for name in names]
    words = canaries.words_of(2)
    table = folder / f"{canaries.word()}.csv"
    table.write_text("\n".join([f"Image Index,Mass,{words[0]},StudyDate,{words[1]}", *rows]) + "\n", encoding="utf-8")
    return [*names, table]


def age(root: Path) -> None:
    """Give all files the time that is searched for."""
    for path in root.rglob("*"):
        os.utime(path, ns=(SOURCE_TIME_NS, SOURCE_TIME_NS))


def canaries_in(data: bytes) -> set[str]:
    """Canaries in bytes as they are: words and numbers in lower case, dates and times as their kind."""
    found = {name for name, needles in _WHOLE.items() if any(needle in data for needle in needles)}
    for form in {data, data.replace(b"\0", b"")}:
        for match in _NEEDLES.finditer(form.lower()):
            found.add(match[0].decode() if match.lastgroup in ("word", "number") else str(match.lastgroup))
    return found


def canaries_below(root: Path) -> set[str]:
    """Canaries in names and contents of all files below a folder, unpacked wherever they are packed."""
    found: set[str] = set()
    for path in root.rglob("*"):
        found |= canaries_in(os.fsencode(path.relative_to(root)))
        if path.is_file():
            found.update(*map(canaries_in, _layers(path.read_bytes())))
            found |= _in_array(path) if path.suffix == ".b2nd" else set()
    return found


def _layers(data: bytes) -> Iterator[bytes]:
    """Data, and what is packed in them."""
    yield data
    if data.startswith(b"\x1f\x8b"):
        with contextlib.suppress(zlib.error):
            yield from _layers(zlib.decompressobj(31).decompress(data))
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield archive.comment
            for member in archive.infolist():
                yield member.filename.encode() + member.comment + member.extra
                with contextlib.suppress(zipfile.BadZipFile):
                    yield from _layers(archive.read(member))
    for match in _PICTURES.finditer(data):
        yield from _layers(base64.b64decode(match[1]))
    if data.startswith(b"\x89PNG"):
        for chunk in re.finditer(rb"IDAT", data):
            with contextlib.suppress(zlib.error):
                yield zlib.decompressobj().decompress(data[chunk.end() :])


def _in_array(path: Path) -> set[str]:
    array = blosc2.open(str(path), mode="r")
    metadata = [repr(array.schunk.meta[name]).encode() for name in array.schunk.meta]
    metadata += [repr((name, array.schunk.vlmeta[name])).encode() for name in array.schunk.vlmeta]
    return set().union(*map(canaries_in, [*metadata, array[:].tobytes()]))
