"""Labels of every kind with canaries around what is taken from them; names of structures and classes carry none."""

import json
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from tests.canaries import ACCENTED, STORAGE, Canaries

SPACING_MM = (0.9, 0.7)


def plant_labels(folder: Path, canaries: Canaries, planted: dict[str, list[Path]]) -> list[Path]:
    """LIDC readings of the CT series, structures of the MR series, and boxes on a picture, among `planted`."""
    folder.mkdir()
    return [
        _readings(folder, canaries, pydicom.dcmread(planted["CT"][0], stop_before_pixels=True)),
        _structure_set(folder, canaries, [pydicom.dcmread(path) for path in planted["MR"]]),
        _boxes(folder, canaries, planted["pictures"][0]),
    ]


def _readings(folder: Path, canaries: Canaries, slice_: Dataset) -> Path:
    words = canaries.words_of(4)
    corners = ((0, 0), (4, 0), (4, 4), (0, 4))
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in corners)
    region = f"<roi><imageZposition>10</imageZposition><inclusion>TRUE</inclusion>{edges}</roi>"
    path = folder / f"{canaries.word()}.xml"
    path.write_text(
        f'<?xml version="1.0"?><!-- {words[0]} --><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
        f"<SeriesInstanceUid>{slice_.SeriesInstanceUID}</SeriesInstanceUid>"
        f"<ResponseDescription>{words[1]}</ResponseDescription><DateRequest>1943-02-17</DateRequest></ResponseHeader>"
        f"<readingSession><servicingRadiologistID>{words[2]}</servicingRadiologistID><unblindedReadNodule>"
        f"<noduleID>{words[3]}</noduleID>{region}</unblindedReadNodule></readingSession></LidcReadMessage>"
    )
    return path


def _structure_set(folder: Path, canaries: Canaries, slices: list[Dataset]) -> Path:
    """A rectangle on one slice; everything else of a structure set (PS3.3 C.8.8.5) is a canary."""
    dataset = pydicom.dcmread(slices[0].filename)
    for keyword in ("PixelData", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(dataset, keyword)
    dataset.update({element.tag: element for element in canaries.dataset({0x0008, 0x0010})})
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = f"{STORAGE}481.3"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = canaries.value("UI")
    dataset.Modality, dataset.StructureSetLabel = "RTSTRUCT", canaries.word()
    dataset.StructureSetName, dataset.StructureSetDescription = canaries.words_of(2)
    dataset.StructureSetDate, dataset.StructureSetTime = canaries.value("DA"), canaries.value("TM")
    roi, outlines, contour, image = Dataset(), Dataset(), Dataset(), Dataset()
    roi.ROINumber, roi.ROIName, roi.ROIDescription = 1, "heart", canaries.word()
    image.ReferencedSOPInstanceUID = slices[0].SOPInstanceUID
    contour.ContourImageSequence, contour.ContourGeometricType = [image], "CLOSED_PLANAR"
    x, y, z = slices[0].ImagePositionPatient
    corners = [(x + i * SPACING_MM[0], y + j * SPACING_MM[1], z) for i, j in ((1, 1), (4, 1), (4, 3), (1, 3))]
    contour.NumberOfContourPoints, contour.ContourData = 4, [f"{value:g}" for corner in corners for value in corner]
    outlines.ReferencedROINumber, outlines.ContourSequence = 1, [contour]
    series, study, place = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = slices[0].SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    place.FrameOfReferenceUID, place.RTReferencedStudySequence = slices[0].FrameOfReferenceUID, [study]
    dataset.ReferencedFrameOfReferenceSequence = [place]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [roi], [outlines]
    path = folder / f"{canaries.word()}.dcm"
    dataset.save_as(path)
    return path


def _boxes(folder: Path, canaries: Canaries, picture: Path) -> Path:
    words = canaries.words_of(3)
    coco = {
        "info": {"description": words[0], "contributor": ACCENTED, "date_created": "1943-02-17"},
        "licenses": [{"name": words[1], "id": 1}],
        "images": [{"id": 1, "file_name": picture.name, "width": 10, "height": 8, "date_captured": "1943-02-17"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "caption": words[2]}],
        "categories": [{"id": 1, "name": "mass"}],
        canaries.word(): [],
    }
    path = folder / f"{canaries.word()}.json"
    path.write_text(json.dumps(coco, ensure_ascii=False), encoding="utf-8")
    return path
