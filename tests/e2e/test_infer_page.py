"""`infer --page`: one page of what a call has found, without a network, of bounded size, and with no more names."""

import html
import json
import re
import zlib
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.base.errors import Exit
from medssl_cli.deploy.answer_pictures import answer_picture, answer_scene
from medssl_cli.deploy.choosing import Part
from medssl_cli.deploy.class_words import shown_classes
from medssl_cli.deploy.infer import infer
from medssl_cli.deploy.page_cases import ShownCase, small_picture
from medssl_cli.deploy.results import InferReport, ScanResult
from medssl_cli.deploy.results_page import MOST_CASES, MOST_ROWS, SCENE_BYTES, results_page
from medssl_cli.deploy.whole_answers import FoundBox, WholeAnswer, fields_of
from medssl_cli.formats.dicom import write_ct_series
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.formats.predictions import is_prediction
from medssl_cli.heads import BoxesHead, FindingsHead, Head, OperatingPoint
from medssl_cli.imaging.volume import Volume
from medssl_cli.report import structure_colours
from medssl_cli.report.page import POLICY
from medssl_cli.report.pictures import with_few_colours
from medssl_cli.report.viewer import script_digest
from tests import command
from tests.toy_model import toy_bundle, write_region_model, write_toy_model
from tests.unit.test_viewer import GREY, screenshot

AFFINE = np.diag([-0.9, 0.7, 2.5, 1.0])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_toy_model(tmp_path / "model.onnx", modality="CT")


def phantom(width: int = 5) -> NDArray[np.int16]:
    """Air with a warm block; the toy model marks what is above 50 HU."""
    voxels = np.full((20, 18, 10), -1000, np.int16)
    voxels[2 : 2 + width, 3:11, 1:4] = 200
    return voxels


def scans(folder: Path, number: int) -> Path:
    folder.mkdir(exist_ok=True)
    for place in range(number):
        write_nifti(folder / f"scan{place}.nii.gz", phantom(3 + place % 8), AFFINE)
    return folder


def medssl(*arguments: object) -> Any:
    return command.medssl("infer", *arguments, "--device", "cpu", "--page")


def images_of(page: str) -> list[dict[str, Any]]:
    (block,) = re.findall(r'data-scene="([^"]*)"', page)
    found: list[dict[str, Any]] = json.loads(html.unescape(block))["images"]
    return found


def test_a_page_shows_every_scan_with_its_mask_its_volumes_and_what_was_refused(tmp_path: Path, model: Path) -> None:
    scans(tmp_path / "in", 3)
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"\x1f\x8bnonsense")

    done = medssl(tmp_path / "in", "-t", model, "-o", tmp_path / "out")

    page = (tmp_path / "out" / "page.html").read_text()
    assert (done.exit_code, f"page: {tmp_path / 'out' / 'page.html'}" in done.stdout) == (Exit.PARTIAL, True)
    assert f"{POLICY}; script-src 'sha256-{script_digest()}'" in page
    assert "Research only. Not a medical device." in page
    assert "E_GZ_" in page
    assert [image["title"] for image in images_of(page)] == ["scan0", "scan1", "scan2"]
    for place, image in enumerate(images_of(page)):
        ml = (3 + place) * 8 * 3 * 0.9 * 0.7 * 2.5 / 1000
        assert image["notes"] == [f"bright: {ml:.1f} mL"]
        layers = np.frombuffer(zlib.decompress(b64decode(image["voxels"])), np.uint8).reshape(3, *image["shape"])
        assert (layers[2] == 1).sum() == (3 + place) * 8 * 3
        assert not layers[1].any()  # there is no reference
        assert f'href="./scan{place}_toy-seg.png"' in page


def test_typed_again_the_page_is_made_of_what_is_there_and_nothing_is_computed(tmp_path: Path, model: Path) -> None:
    scans(tmp_path / "in", 2)
    infer([tmp_path / "in"], model, out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out" / "page.html").exists()

    for _ in range(2):
        report = infer([tmp_path / "in"], model, out=tmp_path / "out", device="cpu", has_page=True)
        assert [result.resumed for result in report.results] == [True, True]
        assert report.page == tmp_path / "out" / "page.html"
    assert len(images_of((tmp_path / "out" / "page.html").read_text())) == 2


def test_probabilities_beside_the_masks_change_nothing_on_the_page(tmp_path: Path, model: Path) -> None:
    scans(tmp_path / "in", 1)
    infer([tmp_path / "in"], model, out=tmp_path / "plain", device="cpu", has_page=True)
    more = ("nifti", "preview", "probabilities")
    infer([tmp_path / "in"], model, out=tmp_path / "more", device="cpu", has_page=True, outputs=more)

    plain, with_more = ((tmp_path / name / "page.html").read_text() for name in ("plain", "more"))
    assert images_of(with_more) == images_of(plain) != []


def test_a_mask_that_somebody_changed_is_not_shown_as_the_models(tmp_path: Path, model: Path) -> None:
    from medssl_cli.deploy.page_cases import CaseReader
    from medssl_cli.deploy.results_page import write_page
    from medssl_cli.deploy.scan_reader import ScanReader
    from medssl_cli.deploy.scans import find_scans
    from medssl_cli.formats.policy import STRICT

    scans(tmp_path / "in", 1)
    report = infer([tmp_path / "in"], model, out=tmp_path / "out", device="cpu")
    (result,), (scan,) = report.results, find_scans([tmp_path / "in"]).scans
    cases = CaseReader(toy_bundle(), ScanReader(STRICT, "CT"), tmp_path / "out")
    assert cases.read(scan, result, max_bytes=10_000) is not None

    write_nifti(tmp_path / "out" / result.outputs[0], np.ones((20, 18, 10), np.uint8), AFFINE)

    assert cases.read(scan, result, max_bytes=10_000) is None
    write_page(tmp_path / "late.html", report, [scan], cases)
    assert "cannot be read any more: 1 of the scans" in (tmp_path / "late.html").read_text()


def test_a_page_of_somebody_else_stays_and_ours_is_known(tmp_path: Path, model: Path) -> None:
    scans(tmp_path / "in", 1)
    out = tmp_path / "in" / "out"
    out.mkdir()
    (out / "page.html").write_text("<!doctype html><p>mine")

    refused = medssl(tmp_path / "in", "-t", model, "-o", out)

    assert (refused.exit_code, "E_OUTPUT_EXISTS" in refused.stderr) == (Exit.USAGE, True)
    assert [path.name for path in out.iterdir()] == ["page.html"]
    (out / "page.html").unlink()
    for _ in range(2):
        done = medssl(tmp_path / "in", "-t", model, "-o", out, "--json")
        assert [one["name"] for one in json.loads(done.stdout)["results"]] == ["scan0"]
    assert is_prediction((out / "page.html").read_bytes()[:4096])


def test_pages_of_one_mask_and_of_a_part_have_their_own_names(tmp_path: Path, model: Path) -> None:
    scans(tmp_path / "in", 2)

    one = medssl(tmp_path / "in" / "scan0.nii.gz", "-t", model, "-o", tmp_path / "one" / "mask.nii.gz", "--json")
    part = infer([tmp_path / "in"], model, out=tmp_path / "parts", device="cpu", part=Part(2, 2), has_page=True)

    assert json.loads(one.stdout)["page"] == "mask.page.html"
    assert part.page is not None
    assert part.page.name == "page.2-of-2.html"
    assert len(list(tmp_path.rglob("*.html"))) == 2
    watched = medssl("--watch", tmp_path / "in", "-t", model, "-o", tmp_path / "out")
    assert (watched.exit_code, "--page" in watched.stderr) == (Exit.USAGE, True)
    dry = medssl(tmp_path / "in", "-t", model, "-o", tmp_path / "dry", "--dry-run")
    assert (dry.exit_code, (tmp_path / "dry").exists()) == (0, False)


def test_nothing_of_the_header_or_the_folders_is_told(tmp_path: Path, model: Path) -> None:
    """A DICOM scan in a folder that bears a name, with a name, a number and a description in its header."""
    write_ct_series(
        tmp_path / "Zwiebel^Anna" / "ct",
        Volume(phantom()[None], AFFINE, "CT", "HU"),
        patient_id="PID4711", patient_name="Zwiebel^Anna", study_uid="1.2.3", series_uid="1.2.3.4",
        frame_of_reference_uid="1.2.9", series_description="Zwiebel follow-up",
        file_names=[f"{k}.dcm" for k in range(10)],
    )  # fmt: skip

    infer([tmp_path / "Zwiebel^Anna"], model, out=tmp_path / "out", device="cpu", outputs=("nifti",), has_page=True)

    page = (tmp_path / "out" / "page.html").read_text()
    assert images_of(page)[0]["notes"] == ["bright: 0.2 mL"]
    for secret in ("Zwiebel", "Anna", "PID4711", "1.2.3", "follow-up", str(tmp_path)):
        assert secret not in page


def test_of_regions_the_smaller_is_seen_over_the_larger(tmp_path: Path) -> None:
    model = write_region_model(tmp_path / "model.onnx", ("t1", "t2"), ("all", "core"), modality="MR")
    for name, width in (("t1", 8), ("t2", 3)):
        write_nifti(tmp_path / f"{name}.nii.gz", np.where(phantom(width) > 0, 800, 0).astype(np.int16), AFFINE)
    channels = [f"{name}={tmp_path / name}.nii.gz" for name in ("t1", "t2")]

    infer([], model, out=tmp_path / "out", device="cpu", channels=channels, has_page=True)

    (image,) = images_of((tmp_path / "out" / "page.html").read_text())
    layers = np.frombuffer(zlib.decompress(b64decode(image["voxels"])), np.uint8).reshape(3, *image["shape"])
    assert [int((layers[2] == value).sum()) for value in (1, 2)] == [5 * 8 * 3, 3 * 8 * 3]


def head_of(kind: str) -> Head:
    points = {name: OperatingPoint(threshold=0.5, rule="fixed") for name in ("<b>", "c")}
    own: dict[str, Any] = {"names": ("<b>", "c"), "operating_points": points}
    own["label_classes"] = dict.fromkeys(points, "any")
    if kind == "findings":
        return FindingsHead(**own)
    size = {"tile_size": (16, 16, 16)} if kind == "candidates" else {}
    return BoxesHead(**own, **size, strides=(8,), min_score=0.1, max_overlap=0.5, max_boxes=9, match_overlap=0.5)


ANSWERS = {
    "findings": WholeAnswer("findings", findings={"<b>": 0.9, "c": 0.2}, thresholds={"<b>": 0.5, "c": 0.5}),
    "boxes": WholeAnswer(
        "boxes",
        boxes=(FoundBox("<b>", 0.9, True, (3.0, 4.0, 9.0, 8.0)), FoundBox("c", 0.2, False, (0.0, 0.0, 5.0, 5.0))),
    ),
    "candidates": WholeAnswer(
        "candidates",
        boxes=(
            FoundBox("<b>", 0.9, True, (-9.0, 4.0, 3.0, -5.0, 8.0, 7.0), 4.0),
            FoundBox("c", 0.2, False, (-3.0, 4.0, 3.0, -2.0, 8.0, 7.0), 1.0),
        ),
    ),
}


def page_of(kind: str, number: int, volume: Volume, outputs: Sequence[str] = ()) -> str:
    head = head_of(kind)
    scene = answer_scene(volume, ANSWERS[kind], max_bytes=SCENE_BYTES // MOST_CASES)
    bundle = toy_bundle().model_copy(update={"head": head})
    picture = small_picture(answer_picture(volume, ANSWERS[kind], shown_classes(bundle)))
    results = tuple(
        ScanResult(f"scan{place}", "done", key=str(place), outputs=tuple(outputs), **fields_of(ANSWERS[kind]))
        for place in range(number)
    )
    cases = {str(place): ShownCase(scene, picture) for place in range(min(number, MOST_CASES))}
    report = InferReport("toy", "a" * 64, "cpu", "Tests", Path("out"), Path("out/report.json"), results)
    return results_page(report, bundle, cases)


@pytest.mark.parametrize("kind", ANSWERS)
def test_findings_and_boxes_are_told_and_boxes_lie_where_they_were_found(kind: str) -> None:
    shape = (20, 16, 10) if kind == "candidates" else (20, 16, 1)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0]) if kind == "candidates" else np.eye(4)
    volume = Volume(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), affine)

    page = page_of(kind, 2, volume, ("scan_toy.png",))

    assert "<b>" not in page
    image = images_of(page)[0]
    assert len(image["boxes"]) == (0 if kind == "findings" else 1)  # the weaker one is not drawn
    assert image["isPicture"] == (kind != "candidates")
    if kind == "findings":
        assert "0.900 yes" in page
        assert image["notes"] == ["<b>: 0.900 yes", "c: 0.200"]
    else:
        (box,) = image["boxes"]
        # A picture is turned on both axes: 20 - 9 = 11. In the patient x goes from -19.5 to 0.5: -9 + 19.5 = 10.5.
        low = (11, 8, 0) if kind == "boxes" else (10.5, 4.5, 3.5)
        assert box["low"] == pytest.approx(low)
        assert "not drawn, below their operating point: 1" in image["notes"]


def test_a_page_of_many_noisy_scans_stays_below_five_megabytes() -> None:
    rng = np.random.default_rng(0)
    volume = Volume(rng.normal(size=(1, 160, 160, 60)).astype(np.float32), np.diag([-1.0, 1.0, 1.0, 1.0]))

    page = page_of("candidates", 2 * MOST_ROWS, volume, ("x" * 100 + ".png",))

    assert 2_000_000 < len(page) < 5_000_000
    assert page.count("<tr>") == MOST_ROWS + 1
    assert f"The other {MOST_ROWS} are in the report." in page
    assert f"{MOST_CASES} of {2 * MOST_ROWS} scans" in page


def test_colours_of_small_structures_stay_what_they_are_in_few_colours() -> None:
    ramp = np.repeat(np.linspace(0, 255, 600).astype(np.uint8)[None, :, None], 3, axis=2)
    voxels = np.repeat(ramp, 400, axis=0)
    voxels[100:300] = voxels[100:300] * (0.5, 0.8, 1.0)
    colours = [structure_colours((number,))[number] for number in range(1, 8)]
    for number, colour in enumerate(colours):
        voxels[10:16, 20 + 40 * number : 26 + 40 * number] = colour

    found = np.asarray(with_few_colours(Image.fromarray(voxels)).convert("RGB")).astype(int)

    for number, colour in enumerate(colours):
        assert np.abs(found[12, 23 + 40 * number] - colour).max() <= 10, colour


def test_pictures_are_made_smaller_until_they_fit(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 450, 3), dtype=np.uint8))

    small = small_picture(noise, max_bytes=20_000)

    small.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size <= 20_000
    assert small.width / small.height == pytest.approx(1.5, rel=0.02)
    assert small_picture(Image.new("RGB", (1400, 200))).size == (700, 100)
    assert small_picture(Image.new("RGB", (300, 200))).size == (300, 200)


@pytest.mark.slow
def test_chromium_shows_the_page_from_a_file_with_the_box_on_its_slice(tmp_path: Path) -> None:
    """Voxels of -300 HU are in the middle between -1000 and 400: the grey by which a drawn plane is known."""
    volume = Volume(np.full((1, 20, 16, 10), -300, np.int16), np.diag([-1.0, 1.0, 1.0, 1.0]), "CT", "HU")
    colours = structure_colours((1, 2))

    picture = screenshot(tmp_path, page_of("candidates", 1, volume))

    box, weaker = (np.abs(picture - np.array(colours[value])).max(axis=2) <= 3 for value in (1, 2))
    grey = np.abs(picture - GREY).max(axis=2) <= 3
    rows = np.flatnonzero(grey.sum(axis=1) > 200)
    inside = box[rows[0] : rows[-1]]
    assert inside.sum() > 200  # lines of the box on the planes
    assert not weaker[rows[0] : rows[-1]].any()  # the weaker box is not drawn
