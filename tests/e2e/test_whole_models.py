"""Models of findings and boxes go all the way: through the gate, and onto pictures as findings and boxes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from medssl_cli.base.errors import Exit, GateError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.deploy import export, proven_file
from medssl_cli.deploy.bundle import Bundle, load_model
from medssl_cli.deploy.export import export_network, head_of, make_bundle
from medssl_cli.deploy.onnx_file import graph_of, read_head, seal
from medssl_cli.engine.finetune import Choices, finetune
from medssl_cli.engine.finetuned import FineTunedRun, load_finetuned
from medssl_cli.formats.dicom_sr import read_groups
from medssl_cli.heads import BoxesHead, FindingsHead, OperatingPoint
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import Named
from tests.command import medssl
from tests.e2e.test_classification import FLAT, task_recipe
from tests.e2e.test_detection import recipe as box_recipe
from tests.finding_cache import finding_cache
from tests.toy_model import changed
from tests.unit.test_dicom_projection import xray

pytestmark = pytest.mark.slow
KINDS: Final = ("findings", "boxes", "stacks")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cache]:
    root = tmp_path_factory.mktemp("caches")
    flat = {"num_patients": 30, "shape": (32, 24, 1)}
    return {
        "findings": finding_cache(root / "findings", **flat),
        "boxes": finding_cache(root / "boxes", **flat, label_set=None, box_set="balls"),
        "stacks": finding_cache(root / "stacks", num_patients=20, shape=(12, 12, 8), modality="CT"),
    }


@pytest.fixture(scope="module")
def folders(caches: dict[str, Cache], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs."""
    root = tmp_path_factory.mktemp("runs")
    relation = {"embedding_dim": 16, "num_layers": 1, "num_heads": 2}
    stacks = task_recipe(4, size=(16, 16, 6), classes={"ball": ["Ball"]}, relation=relation)
    recipes = {
        "findings": task_recipe(20),
        "boxes": box_recipe(30),
        "stacks": stacks.model_copy(update={"backbone": Named(**FLAT)}),
    }
    for name, recipe in recipes.items():
        finetune(recipe, caches[name], root / name, Choices(), device="cpu", talk=Silence())
    return {name: root / name for name in recipes}


@pytest.fixture(scope="module")
def models(
    caches: dict[str, Cache], folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, folder in folders.items():
        done = medssl("export", folder, root / f"{name}.onnx", "--cache", caches[name].root, "--cases", 2)
        assert done.exit_code == 0, done.stderr
    return {name: root / f"{name}.onnx" for name in folders}


def test_the_bundle_says_how_answers_are_read(models: dict[str, Path]) -> None:
    findings, boxes, stacks = (load_model(models[name])[1] for name in KINDS)

    assert isinstance(findings.head, FindingsHead)
    assert (findings.head.names, findings.takes_flat, findings.preprocessing.fit) == (("Ball", "Haze"), True, (24, 24))
    haze = findings.head.operating_points["Haze"]
    assert (haze.rule, haze.num_patients) == ("youden", 5)
    assert 0 < haze.threshold < 1
    assert isinstance(boxes.head, BoxesHead)
    assert boxes.head.operating_points["ball"].rule == "one_false_per_image"
    assert (boxes.head.operating_points["ball"].false_per_image or 0) <= 1
    assert isinstance(stacks.head, FindingsHead)
    assert (stacks.head.num_slices, stacks.takes_flat) == (6, False)
    assert all(each.parity and each.parity.max_abs_difference < 1e-4 for each in (findings, boxes, stacks))


@pytest.mark.parametrize("kind", KINDS)
def test_run_and_model_score_the_same(
    kind: str, caches: dict[str, Cache], folders: dict[str, Path], models: dict[str, Path], tmp_path: Path
) -> None:
    documents = []
    for number, what in enumerate((folders[kind], models[kind])):
        where = ("--cache", caches[kind].root, "--device", "cpu", "--out", tmp_path / str(number))
        done = medssl("evaluate", what, "--json", *where)
        assert done.exit_code == 0, done.stderr
        documents.append(json.loads(done.stdout))

    ours, theirs = (numbers(document) for document in documents)
    assert len(ours) > 20
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def numbers(node: Any) -> list[float]:
    """All numbers of a document, in order."""
    if isinstance(node, dict):
        return [number for key in sorted(node) for number in numbers(node[key])]
    if isinstance(node, list):
        return [number for each in node for number in numbers(each)]
    return [float(node)] if isinstance(node, int | float) else []


POINT: Final = OperatingPoint(threshold=0.123, rule="fixed")
LIES: Final[dict[str, dict[str, Callable[[Bundle], dict[str, Any]]]]] = {
    "findings": {
        "swapped names": lambda bundle: {"names": ("Haze", "Ball")},
        "another size": lambda bundle: {"preprocessing": bundle.preprocessing.model_copy(update={"fit": (20, 24)})},
        "another rule": lambda bundle: {"preprocessing": Preprocessing(window_hu=(0, 200), fit=(24, 24))},
        "another threshold": lambda bundle: {"operating_points": {"Ball": POINT, "Haze": POINT}},
        "exclusive": lambda bundle: {"is_exclusive": True},
    },
    "boxes": {
        "another name": lambda bundle: {"names": ("square",)},
        "another size": lambda bundle: {"preprocessing": bundle.preprocessing.model_copy(update={"fit": (64, 32)})},
        "another rule": lambda bundle: {"preprocessing": Preprocessing(window_hu=(0, 200), fit=(64, 64))},
        "another threshold": lambda bundle: {"operating_points": {"ball": POINT}},
        "other strides": lambda bundle: {"strides": tuple(2 * stride for stride in bundle.head.strides)},
        "another overlap": lambda bundle: {"max_overlap": 0.9},
        "another least score": lambda bundle: {"min_score": 0.3},
    },
}


@pytest.fixture
def known_graph(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets export trace nothing anew, which takes most of its time."""

    def use(kind: str) -> None:
        graph = graph_of(models[kind].read_bytes(), name="x")
        monkeypatch.setattr(export, "onnx_graph", lambda *_: graph)

    return use


def refused(run: FineTunedRun, cache: Cache, folder: Path) -> str:
    """What the gate says; no file remains, not even a temporary one."""
    path = folder / "out" / "model.onnx"
    with pytest.raises(GateError, match="E_PARITY") as caught:
        export_network(run, path, cache=cache, cases=1, tolerance=1e-4)
    assert list(path.parent.iterdir()) == []
    return caught.value.message


def tampering(monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes], *, at: int = 0) -> None:
    """Let a write of export put something else on the disk than it was given."""
    write, calls = proven_file.write_atomic, []

    def other(path: Path, data: bytes, **options: Any) -> None:
        calls.append(path)
        write(path, change(data) if len(calls) == at + 1 else data, **options)

    monkeypatch.setattr(proven_file, "write_atomic", other)


def with_words(data: bytes, lie: Callable[[Bundle], dict[str, Any]]) -> bytes:
    bundle = Bundle.model_validate_json(read_head(data, name="x"))
    return seal(graph_of(data, name="x"), changed(bundle, **lie(bundle)).to_json())


def with_tensors(data: bytes, factor: float) -> bytes:
    """A sealed model whose largest tensor is multiplied."""
    model = onnx.load_from_string(graph_of(data, name="x"))
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data) * (each.data_type == 1))
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return seal(model.SerializeToString(), read_head(data, name="x"))


@pytest.mark.parametrize(("kind", "lie"), [(kind, lie) for kind, lies in LIES.items() for lie in lies])
def test_a_file_that_says_something_else_is_caught(
    kind: str,
    lie: str,
    caches: dict[str, Cache],
    folders: dict[str, Path],
    known_graph: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known_graph(kind)
    run = load_finetuned(folders[kind])
    for at in (0, 1):
        with monkeypatch.context() as once:
            tampering(once, lambda data: with_words(data, LIES[kind][lie]), at=at)
            refused(run, caches[kind], tmp_path)


@pytest.mark.parametrize(
    ("kind", "lie"),
    [(kind, lie) for kind, lies in LIES.items() for lie in lies if lie not in ("another threshold", "another size")],
)
def test_answers_alone_tell_a_bundle_that_was_made_wrongly(
    kind: str,
    lie: str,
    caches: dict[str, Cache],
    folders: dict[str, Path],
    known_graph: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nobody compares words: thresholds decide about no answer, and sizes are those of the graph."""
    known_graph(kind)
    monkeypatch.setattr(export, "require_contract", lambda *_: None)
    tampering(monkeypatch, lambda data: with_words(data, LIES[kind][lie]))

    refused(load_finetuned(folders[kind]), caches[kind], tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1.1, float("nan")])
@pytest.mark.parametrize("at", [0, 1])
def test_other_weights_are_caught(
    kind: str,
    factor: float,
    at: int,
    caches: dict[str, Cache],
    folders: dict[str, Path],
    known_graph: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known_graph(kind)
    tampering(monkeypatch, lambda data: with_tensors(data, factor), at=at)

    refused(load_finetuned(folders[kind]), caches[kind], tmp_path)


def test_an_edited_recipe_lock_is_another_run(
    caches: dict[str, Cache], folders: dict[str, Path], known_graph: Callable[[str], None], tmp_path: Path
) -> None:
    """The words of the file come from the run that is loaded: another rule in it is another answer, not a lie."""
    known_graph("findings")
    run = load_finetuned(folders["findings"])
    data = run.recipe.data.model_copy(update={"zscore": False, "window_hu": (0.0, 200.0)})
    edited = FineTunedRun(**{**vars(run), "recipe": run.recipe.model_copy(update={"data": data})})
    bundle = make_bundle(run, head_of(run, caches["findings"]), licence="")

    path = tmp_path / "model.onnx"
    found = export_network(edited, path, cache=caches["findings"], cases=1, tolerance=1e-4)

    assert found.preprocessing.window_hu == (0.0, 200.0)
    assert found.recipe_sha256 != bundle.recipe_sha256


def pictures(cache: Cache, folder: Path) -> list[NDArray[np.uint8]]:
    """The first images of a cache as PNG and JPEG; rows are y."""
    folder.mkdir()
    found = []
    for number, record in enumerate(cache.records()[:4]):
        image = cache.read_image(record).voxels[0, :, :, 0].clip(0, 255).astype(np.uint8)
        Image.fromarray(image.T).save(folder / f"{number}.{'png' if number < 3 else 'jpg'}", quality=95)
        found.append(image)
    return found


def infer(*arguments: object) -> Any:
    return medssl("infer", *arguments, "--device", "cpu", "--json")


def test_findings_of_pictures(caches: dict[str, Cache], models: dict[str, Path], tmp_path: Path) -> None:
    cache, out = caches["findings"], tmp_path / "out"
    pictures(cache, tmp_path / "in")

    done = infer(tmp_path / "in", "-t", models["findings"], "-o", out)
    again = infer(tmp_path / "in", "-t", models["findings"], "-o", out)

    report = json.loads(done.stdout)
    assert (done.exit_code, report["done"]) == (0, 4)
    assert all(entry["resumed"] for entry in json.loads(again.stdout)["results"])
    assert {path.name for path in out.iterdir()} == {
        "report.json", "report.jsonl", "findings.csv",
        *(f"{name}_toy.{suffix}" for name in ("0.png", "1.png", "2.png", "3.jpg") for suffix in ("json", "png")),
    }  # fmt: skip
    rows = list(csv.DictReader((out / "findings.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["0.png", "1.png", "2.png", "3.jpg"]
    head = load_model(models["findings"])[1].head
    assert isinstance(head, FindingsHead)
    for row, entry in zip(rows, report["results"], strict=True):
        own = json.loads((out / entry["outputs"][0]).read_text())
        for name in head.names:
            told = own["findings"][name]
            assert float(row[name]) == entry["findings"][name] == told["probability"]
            assert (row[f"{name} is_yes"] == "1") == told["is_yes"] == head.is_yes(name, told["probability"])
        assert own["operating_points"]["Haze"]["rule"] == "youden"
    refused = infer(tmp_path / "in", "-t", models["findings"], "-o", out, "--probabilities")
    assert (refused.exit_code, "no voxel has a probability" in refused.stderr) == (2, True)


def test_a_table_of_somebody_else_stays(models: dict[str, Path], caches: dict[str, Cache], tmp_path: Path) -> None:
    pictures(caches["findings"], tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "findings.csv").write_text("mine\n")

    done = infer(tmp_path / "in", "-t", models["findings"], "-o", tmp_path / "out")

    assert (done.exit_code, "E_OUTPUT_EXISTS" in done.stderr) == (Exit.USAGE, True)
    assert (tmp_path / "out" / "findings.csv").read_text() == "mine\n"


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_boxes_lie_in_the_pixels_of_the_picture_as_it_is_shown(
    turn: int, caches: dict[str, Cache], models: dict[str, Path], tmp_path: Path
) -> None:
    cache, out = caches["boxes"], tmp_path / "out"
    record = next(record for record in cache.records() if record.boxes["balls"])
    image = cache.read_image(record).voxels[0, :, :, 0].clip(0, 255).astype(np.uint8)
    stored = np.rot90(image.T, {1: 0, 3: 2, 6: 1, 8: 3}[turn])  # as a camera that was held otherwise stores it
    exif = Image.Exif()
    exif[0x0112] = turn
    (tmp_path / "in").mkdir()
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "in" / "a.png", exif=exif)

    done = infer(tmp_path / "in", "-t", models["boxes"], "-o", out)

    assert done.exit_code == 0, done.stderr
    (entry,) = json.loads(done.stdout)["results"]
    best = max(entry["boxes"], key=lambda box: box["score"])
    there = record.boxes["balls"][0]
    expected = [*(low + 0.5 for low in there.lower[:2]), *(high + 0.5 for high in there.upper[:2])]
    assert entry["shape"] == [32, 24, 1]
    assert np.abs(np.subtract(best["corners"], expected)).max() < 6
    rows = list(csv.DictReader((out / "boxes.csv").read_text().splitlines()))
    assert len(rows) == len(entry["boxes"])
    assert [float(rows[0][edge]) for edge in ("low_x", "low_y", "high_x", "high_y")] == entry["boxes"][0]["corners"]
    assert all(0 <= box["corners"][0] < box["corners"][2] <= 32 for box in entry["boxes"])


@pytest.mark.parametrize("modality", ["DX", "CR"])
def test_radiographs_in_dicom_get_what_their_picture_gets(
    modality: str, caches: dict[str, Cache], models: dict[str, Path], tmp_path: Path
) -> None:
    values = pictures(caches["boxes"], tmp_path / "in")[0].T
    for name, attributes in (("7", {}), ("8", {"PhotometricInterpretation": "MONOCHROME1"})):
        stored = 4095 - values.astype(np.int64) if attributes else values
        spacing = {"ImagerPixelSpacing": ["0.2", "0.2"], "SeriesInstanceUID": f"1.2.3.4.{len(attributes)}"}
        xray(tmp_path / "in" / f"{name}.dcm", stored, Modality=modality, **spacing, **attributes)

    done = infer(tmp_path / "in", "-t", models["boxes"], "-o", tmp_path / "out", "--formats", "sr")

    assert done.exit_code == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    expected = next(entry["boxes"] for entry in results if entry["name"] == "0.png")
    found = [entry["boxes"] for entry in results if entry["kind"] == "dicom"]
    for entry in [each for each in results if each["kind"] == "dicom"]:
        groups = read_groups((tmp_path / "out" / entry["outputs"][1]).read_bytes())
        probabilities = [each.amounts["122157", "DCM"][0] for each in groups if each.amounts]
        assert probabilities == pytest.approx([box["score"] for box in entry["boxes"]], rel=1e-8)
    assert len(found) == 2
    for boxes in found:
        corners, other = (np.array([box["corners"] for box in each]) for each in (boxes, expected))
        np.testing.assert_allclose(corners, other, atol=0.02)


def test_a_model_of_one_modality_refuses_others_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    data = models["findings"].read_bytes()
    (tmp_path / "model.onnx").write_bytes(with_words(data, lambda _: {"modality": "DX"}))
    xray(tmp_path / "1.dcm", np.arange(20).reshape(4, 5) * 100, Modality="CR")

    done = infer(tmp_path / "1.dcm", "-t", tmp_path / "model.onnx", "-o", tmp_path / "out")

    (entry,) = json.loads(done.stdout)["results"]
    assert (entry["code"], entry["message"]) == ("E_MODALITY_MISMATCH", "the model is for DX, this scan is CR")


@pytest.mark.parametrize("kind", ["findings", "boxes"])
def test_a_volume_is_refused_by_name(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    nifti(tmp_path / "scan.nii.gz", (12, 12, 8))

    done = infer(tmp_path / "scan.nii.gz", "-t", models[kind], "-o", tmp_path / "out")

    (entry,) = json.loads(done.stdout)["results"]
    assert (done.exit_code, entry["code"]) == (Exit.NOTHING, "E_MODALITY_MISMATCH")
    assert "a volume of 8 slices" in entry["message"]


def test_volumes_get_findings_and_pictures_do_not(
    caches: dict[str, Cache], models: dict[str, Path], tmp_path: Path
) -> None:
    pictures(caches["findings"], tmp_path / "in")
    nifti(tmp_path / "in" / "scan.nii.gz", (12, 12, 8))

    done = infer(tmp_path / "in", "-t", models["stacks"], "-o", tmp_path / "out")

    results = {entry["name"]: entry for entry in json.loads(done.stdout)["results"]}
    assert done.exit_code == Exit.PARTIAL, done.stderr
    assert 0 <= results["scan"]["findings"]["ball"] <= 1
    assert {entry["code"] for name, entry in results.items() if name != "scan"} == {"E_NO_PATIENT_GEOMETRY"}
    named = infer(tmp_path / "in" / "scan.nii.gz", "-t", models["stacks"], "-o", tmp_path / "mask.nii.gz")
    assert (named.exit_code, "gives findings and no mask" in named.stderr) == (Exit.USAGE, True)


def nifti(path: Path, shape: tuple[int, int, int]) -> None:
    from medssl_cli.formats.gzip_strict import gzip_bytes
    from medssl_cli.formats.nifti import encode_nifti

    voxels = np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)
    path.write_bytes(gzip_bytes(encode_nifti(voxels, np.diag([2.0, 2.0, 2.0, 1.0]))))
