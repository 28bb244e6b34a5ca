"""Nodules of known place, the whole road: DICOM and LUNA16's table in, a trained model, `candidates.csv` out."""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from medssl_cli.base.errors import Exit
from medssl_cli.cache.store import Cache
from medssl_cli.deploy.bundle import load_model
from medssl_cli.deploy.candidates import boxes_in_patient
from medssl_cli.heads import BoxesHead
from medssl_cli.imaging.spots import Spots
from medssl_cli.metrics.froc import froc, marks_at
from medssl_cli.metrics.marks import FALSE_PER_IMAGE
from tests import command
from tests.e2e.test_whole_models import numbers
from tests.nodule_phantoms import Phantom, annotations_csv, phantom, write_dicom

pytestmark = pytest.mark.slow
RECIPE = """# Nodules of phantoms.
schema: 1
name: toy
backbone: {name: unet, channels: [8, 16], strides: [2, 2], num_res_units: 0}
task: {name: detection, label_set: nodules, classes: [nodule], width: 16, num_levels: 2, match_overlap: 0.1,
       max_overlap: 0.2, max_boxes: 20}
data: {modality: CT, window_hu: [-1000, 400], spacing_mm: [1.0, 1.0, 1.5], crop_size: [24, 24, 16], batch_size: 2}
foreground_prob: 0.7
optimizer: {learning_rate: 2.0e-3}
steps: 100
validate_every: 100
checkpoint_every: 100
"""


def medssl(*arguments: object) -> Any:
    done = command.medssl(*arguments)
    assert done.exit_code in (Exit.OK, Exit.PARTIAL), done.stderr
    return done


@dataclass(frozen=True)
class Road:
    """What a run of all commands leaves behind."""

    root: Path
    phantoms: dict[str, Phantom]

    @property
    def model(self) -> Path:
        return self.root / "model.onnx"

    @property
    def cpu(self) -> tuple[object, ...]:
        return "--cache", self.root / "cache", "--device", "cpu"

    def candidates(self) -> list[dict[str, str]]:
        return list(csv.DictReader((self.root / "out" / "candidates.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    root = tmp_path_factory.mktemp("road")
    made = [phantom(number, num_nodules=0 if number % 6 == 5 else 1 + number % 2) for number in range(15)]
    found = Road(root, {write_dicom(root / "in", number, each): each for number, each in enumerate(made)})
    (root / "annotations.csv").write_text(annotations_csv(found.phantoms))
    (root / "toy.yaml").write_text(RECIPE)
    medssl("ingest", root / "in", "--cache", root / "cache")
    medssl("ingest", root / "annotations.csv", "--cache", root / "cache", "--label-set", "nodules")
    medssl("finetune", "--task", root / "toy.yaml", *found.cpu, "--run", root / "run")
    medssl("export", root / "run", found.model, "--cache", root / "cache", "--cases", 1)
    medssl("infer", root / "in", "-t", found.model, "-o", root / "out", "--device", "cpu")
    return found


def test_most_nodules_are_hit_at_one_false_mark_per_scan(road: Road) -> None:
    """Places come from the table alone, and are compared with where the phantoms were made to have nodules."""
    places, scores = [], []
    for series in road.phantoms:
        own = [row for row in road.candidates() if row["seriesuid"] == series]
        lps = np.array([[float(row[f"coord{axis}"]) for axis in "XYZ"] for row in own]).reshape(-1, 3)
        places.append(lps * (-1, -1, 1))
        scores.append(np.array([float(row["probability"]) for row in own]))
    nodules = [Spots(each.centres_mm, each.diameters_mm) for each in road.phantoms.values()]

    marks = marks_at(places, scores, nodules, [Spots.none()] * len(nodules))

    assert marks.num_boxes.sum() >= 15
    assert froc(marks)[FALSE_PER_IMAGE.index(1)] >= 0.9
    shares = [
        best_mark_mm(own, values, centre, reach_mm=diameter) / (diameter / 2)
        for own, values, spots in zip(places, scores, nodules, strict=True)
        for centre, diameter in zip(*spots, strict=True)
    ]
    assert np.mean(np.array(shares) < 1) >= 0.9


def best_mark_mm(points: np.ndarray, scores: np.ndarray, centre: np.ndarray, *, reach_mm: float) -> float:
    """How far from a nodule's centre the best of the marks around it lies; infinite without any."""
    away = np.linalg.norm(points - centre, axis=1)
    near = np.flatnonzero(away < reach_mm)
    return float(away[near[scores[near].argmax()]]) if len(near) else float("inf")


def test_the_table_is_that_of_luna16_and_is_known_as_an_answer(road: Road, tmp_path: Path) -> None:
    table = road.root / "out" / "candidates.csv"

    told = medssl("ingest", road.root / "in", table, "--cache", tmp_path / "cache", "--json", "--dry-run")

    assert table.read_text().startswith("seriesuid,coordX,coordY,coordZ,probability,medssl_task,")
    assert "S_PREDICTION" in told.stdout
    assert {row["seriesuid"] for row in road.candidates()} <= set(road.phantoms)


def test_boxes_lie_in_the_patient_and_say_what_the_table_says(road: Road) -> None:
    first = next(entry for entry in reported(road.root / "out") if entry["boxes"])
    own = json.loads((road.root / "out" / first["outputs"][0]).read_text())
    rows = [row for row in road.candidates() if row["seriesuid"] == first["SeriesInstanceUID"]]

    assert (own["coordinates"], own["head"]) == ("RAS mm", "boxes")
    assert own["boxes"] == first["boxes"]
    assert [f"{box['score']:.6f}" for box in own["boxes"]] == [row["probability"] for row in rows]
    for box, row in zip(own["boxes"], rows, strict=True):
        middle = np.add(box["corners"][:3], box["corners"][3:]) / 2 * (-1, -1, 1)
        assert [float(row[f"coord{axis}"]) for axis in "XYZ"] == pytest.approx(middle.tolist(), abs=1e-3)


def test_the_same_scan_as_nifti_has_the_same_boxes(road: Road, tmp_path: Path) -> None:
    cache = Cache.open(road.root / "cache")
    record = next(record for record in cache.records() if record.boxes.get("nodules"))
    medssl("cache", "export", tmp_path / "nifti", record.item_id, "--cache", cache.root)

    medssl("infer", tmp_path / "nifti", "-t", road.model, "-o", tmp_path / "out", "--device", "cpu")

    (found,) = [entry["boxes"] for entry in reported(tmp_path / "out") if entry["boxes"]]
    others = [entry["boxes"] for entry in reported(road.root / "out") if len(entry["boxes"]) == len(found)]
    same = min(others, key=lambda boxes: np.abs(np.subtract(scores_of(boxes), scores_of(found))).max())
    np.testing.assert_allclose(scores_of(same), scores_of(found), atol=1e-4)
    np.testing.assert_allclose([box["corners"] for box in same], [box["corners"] for box in found], atol=0.01)


def reported(folder: Path) -> list[dict[str, Any]]:
    """What a report says of each scan."""
    results: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())["results"]
    return results


def scores_of(boxes: list[dict[str, Any]]) -> list[float]:
    return [box["score"] for box in boxes]


def test_run_and_model_score_the_same(road: Road, tmp_path: Path) -> None:
    told = [medssl("evaluate", what, *road.cpu, "--json", "--out", tmp_path / str(n)).stdout
            for n, what in enumerate((road.root / "run", road.model))]  # fmt: skip
    ours, theirs = (json.loads(text) for text in told)

    scores, of_model = (numbers(document["mean_average_precision"]) for document in (ours, theirs))
    np.testing.assert_allclose(of_model, scores, rtol=0, atol=1e-2)
    # Of two boxes that overlap much and have equal scores either may be left, by the last bit: nearly all are the same.
    boxes, of_model = (
        [numbers(box) for case in document["cases"] for box in case["found"]] for document in (ours, theirs)
    )
    assert len(of_model) == pytest.approx(len(boxes), abs=2)
    same = [any(np.allclose(box, other, rtol=0, atol=1e-3) for other in of_model) for box in boxes]
    assert np.mean(same) > 0.9
    assert set(ours["classes"]["nodule"]["froc"]) == {"competition_metric", "curve", "sensitivity"}
    page = (tmp_path / "0" / "page.html").read_text()
    assert "Nodules hit, by false marks per scan" in page
    assert page.count("data:image/png") > 0
    rows = list(csv.DictReader((tmp_path / "0" / "scores.csv").read_text().splitlines()))
    assert {"low_z", "high_z"} <= rows[0].keys()


def test_the_bundle_says_how_volumes_are_searched(road: Road) -> None:
    head = load_model(road.model)[1].head

    assert isinstance(head, BoxesHead)
    assert (head.tile_size, head.overlap, head.strides) == ((24, 24, 16), 0.5, (2, 4, 8))
    assert head.operating_points["nodule"].rule == "one_false_per_image"


def test_pictures_are_refused_by_a_model_of_volumes(road: Road, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    done = command.medssl("infer", tmp_path / "a.png", "-t", road.model, "-o", tmp_path / "o")

    assert (done.exit_code, "E_NOTHING_USABLE" in done.stderr) == (Exit.NOTHING, True)


def test_a_box_of_a_turned_volume_lies_around_its_own_centre() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (0.7, 0.8, 2.5), (5, -7, 20)
    edges = np.array([[2.0, 3, 1, 6, 9, 4], [-5, 0, 0, 3, 3, 99]])

    corners, diameters = boxes_in_patient(edges, (20, 20, 10), affine)

    eight = [[edges[0, x], edges[0, y], edges[0, z]] for x in (0, 3) for y in (1, 4) for z in (2, 5)]
    world = (np.array(eight) - 0.5) @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(corners[0], [*world.min(axis=0), *world.max(axis=0)])
    np.testing.assert_allclose((corners[0, :3] + corners[0, 3:]) / 2, world.mean(axis=0))
    np.testing.assert_allclose(diameters, [(4 * 0.7 + 6 * 0.8 + 3 * 2.5) / 3, (3 * 0.7 + 3 * 0.8 + 10 * 2.5) / 3])


def pushed(readings: str, shift: int) -> str:
    """Readings of LIDC-IDRI whose outlines lie so many pixels to the right."""
    return re.sub(r"(?<=<xCoord>)\d+", lambda found: str(int(found[0]) + shift), readings)


@pytest.mark.real_data
def test_readings_of_a_real_scan_go_the_whole_road(shared_data: Path, tmp_path: Path) -> None:
    """One scan of LIDC-IDRI with its four readers, pushed aside by so many pixels for each of six patients."""
    slices = sorted((shared_data / "lidc_small" / "small").rglob("*.dcm"))
    (readings,) = (shared_data / "lidc_small").rglob("*.xml")
    old = str(pydicom.dcmread(slices[0], stop_before_pixels=True).SeriesInstanceUID)
    for patient, shift in enumerate(range(-60, 100, 30)):
        series, study = generate_uid(), generate_uid()
        folder = tmp_path / "in" / f"LIDC-IDRI-{patient:04d}"
        folder.mkdir(parents=True)
        for number, path in enumerate(slices):
            header = pydicom.dcmread(path)
            header.PatientID, header.StudyInstanceUID, header.SeriesInstanceUID = f"L{patient}", study, series
            header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            header.PixelData = np.roll(header.pixel_array, shift, axis=1).tobytes()
            header.save_as(folder / f"{number}.dcm")
        (folder / "069.xml").write_text(pushed(readings.read_text().replace(old, series), shift))
    (tmp_path / "toy.yaml").write_text(
        RECIPE.replace("steps: 100", "steps: 2").replace("_every: 100", "_every: 2").replace("nodules,", "lidc,")
        .replace("[1.0, 1.0, 1.5]", "[2.0, 2.0, 2.5]").replace("classes: [nodule]", "min_readers: 3, classes: [nodule]")
    )  # fmt: skip
    cpu = ("--cache", tmp_path / "cache", "--device", "cpu")

    medssl("ingest", tmp_path / "in", "--cache", tmp_path / "cache", "--label-set", "lidc")
    medssl("finetune", "--task", tmp_path / "toy.yaml", *cpu, "--run", tmp_path / "run")
    scored = json.loads(medssl("evaluate", tmp_path / "run", *cpu, "--json", "--out", tmp_path / "scores").stdout)
    medssl("export", tmp_path / "run", tmp_path / "m.onnx", "--cache", tmp_path / "cache", "--cases", 1)
    medssl(
        "infer", tmp_path / "in" / "LIDC-IDRI-0000", "-t", tmp_path / "m.onnx", "-o", tmp_path / "o", "--device", "cpu"
    )

    assert scored["classes"]["nodule"]["num_boxes"] == scored["num_items"] > 0
    assert json.loads((tmp_path / "o" / "report.json").read_text())["done"] == 1
