"""What can be ingested can be segmented: one table of formats, the same repairs, the same refusals, the same voxels.

The folder toy_formats/ holds the format of docs/guides/add-a-format.md, put beside the real ones by extending the path
of the package: a format is its file, and nothing else has to know it.
"""

import ast
import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from medssl_cli.base.errors import Exit, InputError
from medssl_cli.cache.store import Cache
from medssl_cli.cli.infer import infer as infer_command
from medssl_cli.cli.ingest import ingest as ingest_command
from medssl_cli.deploy.infer import infer
from medssl_cli.deploy.scan_reader import OF_NO_CONCERN, ScanReader
from medssl_cli.deploy.scans import find_scans
from medssl_cli.formats import images
from medssl_cli.formats.dicom import read_headers
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.nifti import read_nifti, write_nifti
from medssl_cli.formats.open import open_images
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.table import image_formats, image_suffixes
from medssl_cli.imaging.volume import Volume
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.work.workers import Outcome
from tests import every_kind as kinds
from tests.dicom_factory import ct_series, edit, write_volume
from tests.reference_images import write_with_simpleitk
from tests.toy_model import write_toy_model
from tests.unit.test_metaimage import metaimage
from tests.unit.test_nrrd import nrrd

ROOT = Path(__file__).parents[2]
TOY_FORMATS = Path(__file__).parent / "toy_formats"
REPAIRS = Policy(
    gaps="interpolate",
    tilt="resample",
    shear="resample",
    nifti_affine="sform",
    assume_orientation="RAS",
    nonfinite="background",
    split_4d=True,
    min_slices=3,
    burned_in="accept-risk",
    allow_headerless=True,
    allow_detached=True,
    stack_pictures=True,
)
LEAST = Policy(max_volume_bytes=2**20)
UID = "1.2.826.0.1.3680043.8.498"
SHEARED = np.array([[2.0, 0.8, 0, 1], [0, 2, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Case:
    """An input.

    Args:
        write: Makes it in a folder; gets a name that no other file has, and a number that no other has.
        refusal: Code without the repair that it needs; "" for one that needs none.
        repairs: What the image says about its repair.
        num_images: How many it holds.
    """

    write: Callable[[Path, str, int], object]
    refusal: str = ""
    repairs: tuple[str, ...] = ()
    num_images: int = 1


def uids(number: int) -> dict[str, str]:
    return {"series_uid": f"{UID}.7.{number}", "study_uid": f"{UID}.8.{number}", "patient_id": f"P{number}"}


def slices(folder: Path, number: int, shape: tuple[int, int, int] = kinds.SHAPE) -> list[Path]:
    volume = Volume(kinds.noise(number, shape)[None], kinds.CT.affine, "CT", "HU")
    files = write_volume(folder, volume, **uids(number))
    return sorted(files, key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])


def gap(folder: Path, name: str, number: int) -> None:
    ct_series(folder, **uids(number))[2].unlink()


def tilted(folder: Path, name: str, number: int) -> None:
    for k, path in enumerate(slices(folder, number)):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        edit(path, ImagePositionPatient=[x, y + 0.7 * k, z])


def headerless(folder: Path, name: str, number: int) -> None:
    for path in slices(folder, number):
        (header,) = read_headers(path)
        path.write_bytes(path.read_bytes()[header.data_set_offset :])


def packed(folder: Path, name: str, number: int) -> None:
    for path in slices(folder, number):
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        dataset.save_as(path)


def enhanced(folder: Path, name: str, number: int) -> None:
    kinds.enhanced(folder / name)


def nifti(voxels: Callable[[int], Any], qform: Any = kinds.MR_AFFINE, sform: Any = kinds.MR_AFFINE) -> Any:
    def write(folder: Path, name: str, number: int) -> None:
        image = nib.Nifti1Image(voxels(number), qform if sform is None else sform)
        image.set_qform(qform, 1 if qform is not None else 0)
        image.set_sform(sform, 2 if sform is not None else 0)
        nib.save(image, folder / f"{name}.nii.gz")

    return write


def holed(number: int) -> Any:
    voxels = kinds.noise(number).astype(np.float32)
    voxels[1, 2, 3], voxels[0, 0, 0] = np.nan, np.inf
    return voxels


def moved() -> Any:
    affine = kinds.MR_AFFINE.copy()
    affine[0, 3] = 5
    return affine


def text(suffix: str, make: Callable[..., bytes], **changes: Any) -> Any:
    """A file of text and voxels; its voxels are noise of its own, as bytes or in a file beside it."""

    def write(folder: Path, name: str, number: int) -> None:
        voxels = kinds.noise(number, (5, 4, 3))
        if changes.get("is_holed"):
            voxels = voxels.astype("<f4")
            voxels[1, 2, 1] = np.nan
        body = voxels.tobytes(order="F")
        plain = {key: value for key, value in changes.items() if key not in ("is_holed", "beside")}
        if "beside" in changes:
            (folder / f"{name}.raw").write_bytes(body)
            plain[changes["beside"]] = f"{name}.raw"
            body = b""
        (folder / f"{name}{suffix}").write_bytes(make(body, **plain))

    return write


def picture(suffix: str, **options: Any) -> Any:
    def write(folder: Path, name: str, number: int) -> None:
        pixels = np.random.default_rng(number).integers(0, 255, (21, 34)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}{suffix}", **options)

    return write


def dicom_picture(**attributes: Any) -> Any:
    def write(folder: Path, name: str, number: int) -> None:
        kinds.picture(folder / name, seed=number, patient=f"P{number}", **attributes)

    return write


def turned(folder: Path, name: str, number: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(".jpg", exif=exif)(folder, name, number)


def numbered(folder: Path, name: str, number: int) -> None:
    """Four slices of a volume."""
    for index in range(4):
        picture(".png")(folder, f"slice-{index}", 10 * number + index)


ULTRASOUND = {"kind": kinds.US_CLASS, "Modality": "US", "ImagerPixelSpacing": None}
CASES = {
    "dicom": Case(lambda folder, _, number: slices(folder, number)),
    "dicom-packed": Case(packed),
    "dicom-enhanced": Case(enhanced),
    "dicom-gap": Case(gap, "E_MISSING_SLICES", ("gaps=interpolate",)),
    "dicom-tilt": Case(tilted, "E_GANTRY_TILT", ("tilt=resample",)),
    "dicom-short": Case(lambda folder, _, number: slices(folder, number, (24, 20, 3)), "E_TOO_FEW_SLICES"),
    "dicom-headerless": Case(headerless, "S_NOT_AN_IMAGE"),
    "dicom-dx": Case(dicom_picture(BurnedInAnnotation="NO")),
    "dicom-us": Case(dicom_picture(**ULTRASOUND), "E_BURNED_IN"),
    "nifti": Case(nifti(kinds.noise)),
    "nifti-affines": Case(nifti(kinds.noise, moved()), "E_SFORM_QFORM_CONFLICT", ("nifti-affine=sform",)),
    "nifti-nowhere": Case(nifti(kinds.noise, None, None), "E_NO_ORIENTATION", ("assume-orientation=RAS",)),
    "nifti-shear": Case(nifti(kinds.noise, None, SHEARED), "E_AFFINE_SHEAR", ("shear=resample",)),
    "nifti-holes": Case(nifti(holed), "E_NONFINITE_VOXELS", ("nonfinite=background",)),
    "nifti-4d": Case(nifti(lambda number: kinds.noise(number, (8, 7, 6, 3))), "E_4D_INPUT", ("split-4d",), 3),
    "nrrd": Case(lambda folder, name, number: write_with_simpleitk(folder / f"{name}.nrrd", kinds.noise(number))),
    "nrrd-nowhere": Case(
        text(".nrrd", nrrd, space=None, space_origin=None), "E_NO_ORIENTATION", ("assume-orientation=RAS",)
    ),
    "nrrd-shear": Case(
        text(".nrrd", nrrd, space_directions="(2,0,0) (1,3,0) (0,0,4)"), "E_AFFINE_SHEAR", ("shear=resample",)
    ),
    "nrrd-holes": Case(
        text(".nrrd", nrrd, type="float", is_holed=True), "E_NONFINITE_VOXELS", ("nonfinite=background",)
    ),
    "nrrd-detached": Case(text(".nhdr", nrrd, beside="data file"), "E_DETACHED_DATA"),
    "metaimage": Case(lambda folder, name, number: write_with_simpleitk(folder / f"{name}.mha", kinds.noise(number))),
    "metaimage-nowhere": Case(
        text(".mha", metaimage, TransformMatrix=None), "E_NO_ORIENTATION", ("assume-orientation=RAS",)
    ),
    "metaimage-shear": Case(
        text(".mha", metaimage, TransformMatrix="1 0 0 0.6 0.8 0 0 0 1", AnatomicalOrientation="???"),
        "E_AFFINE_SHEAR",
        ("shear=resample",),
    ),
    "metaimage-holes": Case(
        text(".mha", metaimage, ElementType="MET_FLOAT", is_holed=True), "E_NONFINITE_VOXELS", ("nonfinite=background",)
    ),
    "metaimage-detached": Case(text(".mhd", metaimage, beside="data_file"), "E_DETACHED_DATA"),
    "picture-png": Case(picture(".png"), "E_BURNED_IN"),
    "picture-tiff": Case(picture(".tif"), "E_BURNED_IN"),
    "picture-jpeg": Case(turned, "E_BURNED_IN", ("exif-orientation=6",)),
    "picture-stack": Case(numbered, "E_BURNED_IN", ("stack-pictures",)),
}
Seen = tuple[str, tuple[int, ...], str, bytes, tuple[str, ...], tuple[str, ...]]


def seen(volume: Volume, repairs: tuple[str, ...], warnings: tuple[str, ...]) -> Seen:
    """What of an image must be the same for a cache and for a model."""
    noted = tuple(sorted(set(warnings) - set(OF_NO_CONCERN)))
    digest = hashlib.sha256(np.ascontiguousarray(volume.voxels)).hexdigest()
    return digest, volume.voxels.shape, volume.voxels.dtype.name, np.asarray(volume.affine).tobytes(), repairs, noted


def stored(folder: Path, cache: Path, policy: Policy) -> tuple[Counter[Seen], Counter[str]]:
    """Images that ingest makes of a folder, and its refusals."""
    report = ingest([folder], cache, IngestOptions(workers=1, policy=policy))
    opened = Cache.open(cache)
    found = Counter(
        seen(opened.read_image(record), record.provenance.repairs, record.provenance.warnings)
        for record in opened.records()
    )
    return found, Counter(entry.code for entry in report.entries if entry.code)


def fed(folder: Path, policy: Policy) -> tuple[Counter[Seen], Counter[str]]:
    """Images that infer would feed to a model that takes anything, and its refusals."""
    findings = find_scans([folder], policy, takes_flat=True)
    reader = ScanReader(policy, None)
    taken: Counter[Seen] = Counter()
    refused: Counter[str] = Counter(one.code for one in findings.rejects)
    files_refused = set[Path]()
    for scan in findings.scans:
        try:
            image = reader.read(scan)
        except InputError as error:
            refused[error.code] += scan.sources[0] not in files_refused
            files_refused.add(scan.sources[0])
        else:
            taken[seen(image.volume, image.repairs, image.warnings)] += 1
    return taken, refused


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each case."""
    root = tmp_path_factory.mktemp("cases")
    for number, (name, case) in enumerate(CASES.items(), start=40):
        (root / name).mkdir()
        case.write(root / name, name, number)
    return root


@pytest.fixture(scope="module")
def with_repairs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return stored(inputs, tmp_path_factory.mktemp("repaired") / "cache", REPAIRS), fed(inputs, REPAIRS)


@pytest.fixture(scope="module")
def without(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return stored(inputs, tmp_path_factory.mktemp("strict") / "cache", Policy()), fed(inputs, Policy())


def test_every_format_and_every_repair_is_tried() -> None:
    assert {name.partition("-")[0] for name in CASES} == set(image_formats())
    tried = {repair.partition("=")[0].replace("-", "_") for case in CASES.values() for repair in case.repairs}
    accepted = {"min_slices", "burned_in", "allow_headerless", "allow_detached", "exif_orientation"}
    assert tried | accepted == set(REPAIRS.departures) | {"exif_orientation"}


def test_with_all_repairs_both_take_every_image_and_it_is_the_same(with_repairs: tuple[Any, Any]) -> None:
    (in_cache, refused), (for_model, rejected) = with_repairs

    assert for_model == in_cache
    assert sum(in_cache.values()) == sum(case.num_images for case in CASES.values())
    assert Counter(image[4] for image in in_cache) == Counter(
        case.repairs for case in CASES.values() for _ in range(case.num_images)
    )
    assert (refused, rejected) == (
        Counter({"S_NOT_AN_IMAGE": 2}),
        Counter({"S_NOT_AN_IMAGE": 2}),
    )  # the detached voxels


def test_without_repairs_both_take_the_same_and_refuse_the_same(without: tuple[Any, Any]) -> None:
    (in_cache, refused), (for_model, rejected) = without

    assert for_model == in_cache
    assert sum(in_cache.values()) == sum(not case.refusal for case in CASES.values())
    expected = {case.refusal for case in CASES.values()} - {""} | {"S_NOT_AN_IMAGE"}
    assert set(refused) == set(rejected) == expected
    errors = {code: number for code, number in refused.items() if code.startswith("E_")}
    assert errors == {code: number for code, number in rejected.items() if code.startswith("E_")}


def test_what_is_too_big_for_one_is_too_big_for_the_other(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.zeros((128, 128, 64), np.int16), np.eye(4))

    (scan,) = find_scans([tmp_path], LEAST).scans

    with pytest.raises(InputError, match="E_TOO_BIG"):
        ScanReader(LEAST, None).read(scan)
    assert ingest([tmp_path], tmp_path / "cache", IngestOptions(workers=1, policy=LEAST)).by_code == {"E_TOO_BIG": 1}


def test_pictures_and_projections_are_no_scans_for_a_model_of_volumes(inputs: Path) -> None:
    findings = find_scans([inputs], REPAIRS)

    flat = [one for one in findings.rejects if one.code == "E_NO_PATIENT_GEOMETRY"]
    are_flat = [name.startswith(("picture", "dicom-dx", "dicom-us")) and name != "picture-stack" for name in CASES]
    assert len(flat) == sum(are_flat)
    assert len(find_scans([inputs], REPAIRS, takes_flat=True).scans) == len(findings.scans) + len(flat)


def test_a_file_is_opened_without_being_told_what_it_is(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", kinds.noise(1), kinds.MR_AFFINE)

    (image,) = open_images(tmp_path / "a.nii.gz")

    assert isinstance(image, LoadedImage)
    assert np.array_equal(image.volume.voxels[0], kinds.noise(1))
    with pytest.raises(ValueError, match="no file of the kind 'other'"):
        open_images(Path(__file__))


# A format that is one file.


class InThisProcess:
    """Does tasks here: a process of its own would not know the toys."""

    def map(
        self, function: Callable[[Any], Any], tasks: Any, *, timeout_s: float, should_stop: Any = None
    ) -> Iterator[Any]:
        return (Outcome(task, function(task)) for task in tasks)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy formats beside the real ones."""
    monkeypatch.setattr(images, "__path__", [*images.__path__, str(TOY_FORMATS)])
    monkeypatch.setattr("medssl_cli.ingest.ingest._workers", lambda options: contextlib.nullcontext(InThisProcess()))
    for found in (image_formats, image_suffixes):
        found.cache_clear()
    yield
    for found in (image_formats, image_suffixes):
        found.cache_clear()


def write_plain(path: Path, voxels: np.ndarray) -> None:
    head = f"PLAINTEXT VOLUME {' '.join(map(str, voxels.shape))} 2\n"
    path.write_text(head + " ".join(map(str, voxels.ravel(order="F"))))


def test_a_new_format_is_one_file_that_ingest_and_infer_take(toy: None, tmp_path: Path) -> None:
    scans = tmp_path / "in"
    scans.mkdir()
    voxels = np.arange(20 * 18 * 10, dtype=np.int16).reshape(20, 18, 10) - 1000
    write_plain(scans / "p1.plain", voxels)
    (scans / "p2.plain").write_text("damaged")
    write_plain(scans / "p3.txt", voxels[:, :, :-1])

    report = ingest([scans], tmp_path / "cache", IngestOptions(workers=1, modality="CT"))
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    done = infer([scans], model, out=tmp_path / "out", device="cpu")

    cache = Cache.open(tmp_path / "cache")
    assert {record.provenance.source_kind for record in cache.records()} == {"plaintext"}
    stored_voxels = {cache.read_image(record).voxels.tobytes() for record in cache.records()}
    assert stored_voxels == {voxels[None].tobytes(), np.ascontiguousarray(voxels[None, :, :, :-1]).tobytes()}
    found = {result.place: (result.kind, result.status) for result in done.results}
    assert found == {
        "p1.plain": ("plaintext", "done"), "p2.plain": ("plaintext", "refused"), "p3.txt": ("plaintext", "done"),
    }  # fmt: skip
    assert (report.exit_code, done.exit_code) == (Exit.PARTIAL, Exit.PARTIAL)
    (name,) = next(result.outputs for result in done.results if result.place == "p1.plain")
    mask = read_nifti(tmp_path / "out" / name).image.volume
    assert np.array_equal(mask.voxels[0], voxels > 50)


def test_without_its_file_nobody_knows_the_format(tmp_path: Path) -> None:
    write_plain(tmp_path / "p1.plain", kinds.noise(1))

    assert [one.code for one in find_scans([tmp_path]).rejects] == ["S_NOT_AN_IMAGE"]
    assert "plaintext" not in image_formats()


# The same options, and nobody else who knows a format.

OF_A_CACHE = {"keep_demographics", "predictions"}
"""Fields of a policy that say what is stored: `infer` stores nothing."""


@pytest.mark.parametrize("field", sorted({one.name for one in fields(Policy)} - OF_A_CACHE))
def test_ingest_and_infer_have_the_same_options_of_reading(field: str) -> None:
    name = "max_volume_gib" if field == "max_volume_bytes" else field
    of_ingest, of_infer = (
        signature(command).parameters[name].annotation for command in (ingest_command, infer_command)
    )

    assert of_ingest is of_infer  # one definition: name, help, range and values


def test_options_about_a_cache_are_those_of_ingest_alone() -> None:
    assert set(signature(ingest_command).parameters) >= OF_A_CACHE
    assert not set(signature(infer_command).parameters) & OF_A_CACHE


FORMAT_MODULES = re.compile(r"medssl_cli\.formats\.(dicom|nifti\w*|nrrd|metaimage|pictures?|images(\.\w+)?)$|pydicom")
ALLOWED = {
    "deploy/outputs.py": "writes masks as NIfTI",
    "deploy/mask_files.py": "writes masks as NIfTI: one of its outputs is called so",
    "cache/transfer.py": "exports a cache as NIfTI",
    "deploy/probability_file.py": "writes probabilities as NIfTI",
    "service/peers.py": "sends DICOM objects over the network",
}
"""Rooms that write or send files of a format, and read no image."""
NOT_READERS = ("formats/", "bench/", "demo/", "cli/bench.py", "codes/")


def imports_and_strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.Compare):
            words = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
            yield from (f"'{word}'" for word in words if word in image_formats())


def test_nobody_but_the_readers_knows_a_format() -> None:
    rooms = ROOT / "medssl_cli"
    paths = [path for path in rooms.rglob("*.py") if not str(path.relative_to(rooms)).startswith(NOT_READERS)]
    found = {
        str(path.relative_to(rooms)): named
        for path in paths
        if (named := [word for word in imports_and_strings(path) if FORMAT_MODULES.match(word) or word[0] == "'"])
    }

    assert len(paths) > 150
    assert sorted(found) == sorted(ALLOWED)
