"""Chests: stacks of pictures of CT, nodules, and radiographs with findings and boxes."""

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from tests.published.files import Published, Wanted, body, picture, table
from tests.unit.test_dicom_projection import xray

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
SIDE = 64
_VALIDATE = ("401", "1099", "2018")


def pixels(patient: int, rows: int = SIDE, columns: int = SIDE, *, slice_: int = 0) -> NDArray[np.uint8]:
    """A picture of a patient."""
    return body(patient, (columns, rows, 1), 0, 255, channel=slice_)[:, :, 0].T.astype(np.uint8)


def cc_ccii(root: Path) -> Published:
    """`class/patient/scan/slice` of pictures, with a slice left out, and the tables that lie beside the archives."""
    options = ["--modality", "CT", "--burned-in", "accept", "--stack-pictures", "--label-set", "cc-ccii"]
    made = Published(root / "CC-CCII", "cc-ccii", options)
    scans = [
        ("NCP", 328, 1805), ("NCP", 331, 1812), ("NCP", 400, 1900), ("NCP", 401, 1901), ("CP", 1096, 3314),
        ("CP", 1097, 3315), ("CP", 1098, 3316), ("CP", 1098, 3317), ("CP", 1099, 3318), ("Normal", 2015, 470),
        ("Normal", 2016, 471), ("Normal", 2017, 472), ("Normal", 2018, 473),
    ]  # fmt: skip
    for group, patient, number in scans:
        suffix = "jpg" if group == "CP" else "png"
        for index in range(10):
            drawn = pixels(number, slice_=index)
            place = f"{group}/{patient}/{number}/{index:04d}.{suffix}"
            if (number, index) == (1805, 7):
                continue
            picture(made.folder / place, np.stack([drawn] * 3, -1) if (number, index) == (1805, 3) else drawn)
        findings = {name: float(name == group) for name in ("CP", "NCP")}
        made.images[f"{group}/{patient}/{number}/0000.{suffix}"] = Wanted(str(patient), "CT", findings=findings)
    columns = ("zip_file", "label", "patient_id", "scan_id", "n_slice")
    rows = [(f"{group}-1.zip", group, patient, number, 10) for group, patient, number in scans]
    table(made.folder / "unzip_filenames.csv", [columns, *rows])
    targets = {"Normal": 0, "CP": 1, "NCP": 2}
    for part, chosen in (("train", rows[::2]), ("valid", rows[1::2])):
        lines = [(zipped, targets[str(group)], group, patient, number, size, 1, f"[{number}]")
                 for zipped, group, patient, number, size in chosen]  # fmt: skip
        header = ("zip_file", "target", "label", "patient_id", "scan_id", "n_slice", "scan_count", "all_scan_ids")
        table(made.folder / f"CC_CCII_fold0_{part}.csv", [header, *lines])
    lists = {
        part: made.listed(part, [str(patient) for _, patient, _ in scans if (str(patient) in _VALIDATE) == is_val])
        for part, is_val in (("train", False), ("val", True))
    }
    made.split = [word for part, path in lists.items() for word in ("--split-file", f"{part}={path}")]
    made.unlabelled = ["Normal/2015/470"]
    made.asked = ["--stack-pictures"]
    return made


def nih(root: Path) -> Published:
    """Kaggle's folders of 1024 x 1024 pictures with the tables and lists; headers with unquoted commas."""
    made = Published(root / "NIH", "nih-findings", ["--label-set", "nih", "--modality", "DX", "--burned-in", "accept"])
    found = ["Cardiomegaly", "Effusion|Mass", "No Finding"]
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    )
    lines = [header]
    for patient in range(1, 13):
        for visit in range(2 if patient == 1 else 1):
            name = f"{patient:08d}_{visit:03d}.png"
            side = 1024 if (patient, visit) == (3, 0) else SIDE  # boxes are for the size as distributed
            drawn = pixels(patient, side, side, slice_=visit)
            opaque = np.stack([drawn] * 3 + [np.full_like(drawn, 255)], -1)  # some pictures of the set are RGBA
            picture(made.folder / f"images_001/images/{name}", opaque if (patient, visit) == (1, 1) else drawn)
            said = found[patient % 3]
            lines.append(f"{name},{said},{visit},{patient},058,M,PA,2682,2749,0.143,0.143")
            present = said.split("|")
            listed = {name for text in found for name in text.split("|")} - {"No Finding"}
            findings = {name: float(name in present) for name in listed}
            made.images[f"images_001/images/{name}"] = Wanted(f"{patient:08d}", "DX", findings=findings)
    made.folder.joinpath("Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
    names = [place.rpartition("/")[2] for place in made.images]
    made.folder.joinpath("train_val_list.txt").write_text("\n".join(names[:-3]) + "\n")
    made.folder.joinpath("test_list.txt").write_text("\n".join(names[-3:]) + "\n")
    made.scored = "test"
    train, val = made.listed("train", names[:-6]), made.listed("val", names[-6:-3])
    parts = {"train": train, "val": val, "test": made.folder / "test_list.txt"}
    made.split = [word for part, path in parts.items() for word in ("--split-file", f"{part}={path}")]
    for place in ("train_val_list.txt", "test_list.txt"):
        made.codes[place] = "S_NOT_AN_IMAGE"
    boxes = ["Image Index,Finding Label,Bbox [x,y,w,h],,,", "00000003_000.png,Infiltrate,225.08,547.02,86.78,79.19"]
    made.folder.joinpath("BBox_List_2017.csv").write_text("\n".join(boxes) + "\n")
    made.settings = ["task.classes=[Cardiomegaly, Effusion, Mass]", "data.crop_size=[32, 32, 1]"]
    made.unlabelled = ["images_001/images/00000003_000.png"]
    return made


VINDR = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration",
    "Lung Opacity", "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", "No finding",
)  # fmt: skip
VINDR_COLUMNS = ("image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max")


def vindr(root: Path) -> Published:
    """Kaggle's `train/<32 hex digits>.dicom` and `train.csv`: a row for each box of each reader; 14 for nothing.

    Of the headers no more is left than the picture needs, with sex and age: no study, no series, no modality.
    """
    options = ["--label-set", "vindr", "--patient-pattern", "[0-9a-f]{32}"]
    made = Published(root / "VinBigData", "vindr-boxes", options, scored="test")
    rows: list[tuple[object, ...]] = [VINDR_COLUMNS]
    images = [f"{patient:032x}" for patient in range(1, 11)]
    for patient, image in enumerate(images, 1):
        place = f"train/{image}.dicom"
        made.folder.joinpath("train").mkdir(parents=True, exist_ok=True)
        drawn = pixels(patient, 40, 32).astype(np.uint16) * 16
        _without_identity(xray(made.folder / f"train/{patient}.dcm", drawn), made.folder / place, patient == 1)
        boxes: tuple[str, ...] = ()
        for reader in ("R8", "R9", "R10"):
            if patient == 4:
                rows.append((image, "No finding", 14, reader, "", "", "", ""))
            else:
                left = 4 + int(reader[1:]) % 2
                rows.append((image, "Cardiomegaly", 3, reader, left, 10, left + 12, 22))
                boxes = ("Cardiomegaly",)
        if patient % 5 == 2:  # one reader only
            rows.append((image, "Nodule/Mass", 8, "R8", 20, 30, 28, 38))
            boxes = ("Cardiomegaly", "Nodule/Mass")
        made.images[place] = Wanted(image, "DX", boxes=boxes)
    table(made.folder / "train.csv", rows)
    parts = {"val": images[6:8], "test": images[8:]}
    lists = {part: made.listed(part, names) for part, names in parts.items()}
    made.split = [word for part, path in lists.items() for word in ("--split-file", f"{part}={path}")]
    made.settings = [
        "task.classes={Cardiomegaly: [Cardiomegaly], Nodule/Mass: [Nodule/Mass]}", "data.crop_size=[64, 64, 1]",
        "task.width=16",
    ]  # fmt: skip
    made.unlabelled = [next(iter(made.images))]
    return made


def _without_identity(written: Path, path: Path, is_inverted: bool) -> None:
    """A radiograph as the set is published: its name is in the meta information, and nothing else says what it is."""
    with pydicom.config.disable_value_validation():
        image = pydicom.dcmread(written)
        written.unlink()
        for name in ("SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID", "SeriesInstanceUID", "PatientID",
                     "PatientName", "BurnedInAnnotation", "FrameOfReferenceUID", "RescaleSlope", "RescaleIntercept",
                     "InstanceNumber"):  # fmt: skip
            if name in image:
                delattr(image, name)
        image.PatientSex, image.PatientAge = "F", "061Y"
        image.PhotometricInterpretation = "MONOCHROME1" if is_inverted else "MONOCHROME2"
        image.file_meta.MediaStorageSOPInstanceUID = path.stem
        image.save_as(path, enforce_file_format=False)


def luna16(root: Path) -> Published:
    """Subsets as their archives unpack, MetaImage with the voxels in a file beside, lung masks, and a row of nobody."""
    options = ["--modality", "CT", "--allow-detached", "--label-set", "nodules"]
    made = Published(root / "LUNA16", "luna16-nodules", options)
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10**29 + number}" for number in range(1, 6)]
    rows: list[tuple[object, ...]] = [("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")]
    for patient, uid in enumerate(uids, 1):
        place = f"subset0/{uid}" if patient < 3 else f"subset1/subset1/{uid}"
        sign = -1 if patient == 2 else 1
        origin = (-20.0, -30.0, -100.0)
        voxels = body(patient, (48, 48, 24)).astype("<i2")
        _metaimage(made.folder / f"{place}.mhd", voxels, origin, sign)
        centre = [origin[0] + sign * 0.7 * 20, origin[1] + sign * 0.7 * 24, origin[2] + 1.25 * 12]
        rows.append((uid, *centre, 8.0))
        made.images[f"{place}.mhd"] = Wanted(uid, "CT", boxes=("nodule",))
    rows.append(("1.3.6.1.4.1.14519.5.2.1.6279.6001.999", 0.0, 0.0, 0.0, 5.0))
    table(made.folder / "CSVFILES/annotations.csv", rows)
    made.settings, made.asked = ["task.width=16", "inference.tile_size=[16, 16, 8]"], ["--allow-detached"]
    made.unlabelled = [next(iter(made.images))]
    return made


def _metaimage(path: Path, voxels: NDArray[np.int16], origin: tuple[float, float, float], sign: int) -> None:
    """A header with its voxels in a file beside it, as ITK writes them; axes along -x and -y if the sign is -1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = f"{sign} 0 0 0 {sign} 0 0 0 1"
    path.write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = {matrix}\nOffset = {' '.join(map(str, origin))}\nCenterOfRotation = 0 0 0\n"
        f"AnatomicalOrientation = {'RAI' if sign > 0 else 'LPI'}\nElementSpacing = 0.7 0.7 1.25\n"
        f"DimSize = {' '.join(map(str, voxels.shape))}\nElementType = MET_SHORT\n"
        f"ElementDataFile = {path.stem}.raw\n"
    )
    path.with_suffix(".raw").write_bytes(voxels.tobytes(order="F"))
