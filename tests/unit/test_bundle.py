"""A model says what it is, and every damaged byte is noticed."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper
from pydantic import ValidationError

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.deploy.bundle import Bundle, attach, load_model, patient_digest, read_bundle
from medssl_cli.deploy.onnx_file import seal
from tests.environment import ENVIRONMENT
from tests.toy_model import toy_bundle, toy_graph, write_toy_model


def test_a_bundle_survives_the_file(tmp_path: Path) -> None:
    path = write_toy_model(tmp_path / "model.onnx")

    data, bundle, _ = load_model(path)

    assert bundle == read_bundle(path) == toy_bundle()
    assert data == path.read_bytes()


def test_a_sealed_model_is_still_an_ordinary_onnx_file(tmp_path: Path) -> None:
    model = onnx.load(write_toy_model(tmp_path / "model.onnx"))

    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["medssl.contract"] == "2"
    assert metadata["medssl.bundle"] == toy_bundle().to_json()
    assert metadata["medssl.sha256"] == load_model(tmp_path / "model.onnx")[2]


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    sound = attach(toy_graph(), toy_bundle())
    path = tmp_path / "model.onnx"

    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(GateError, match="E_MODEL_CORRUPT"):
            load_model(path)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_a_truncated_model_is_noticed(tmp_path: Path, kept: float) -> None:
    sound = attach(toy_graph(), toy_bundle())
    path = tmp_path / "model.onnx"
    path.write_bytes(sound[: int(len(sound) * kept)])

    with pytest.raises(GateError, match="E_MODEL_CORRUPT"):
        load_model(path)


def test_appended_and_resaved_models_are_noticed(tmp_path: Path) -> None:
    path = write_toy_model(tmp_path / "model.onnx")
    resaved = onnx.load(path).SerializeToString()

    for changed in (path.read_bytes() + b"\0", resaved):
        path.write_bytes(changed)
        with pytest.raises(GateError, match="E_MODEL_CORRUPT"):
            load_model(path)


@pytest.mark.parametrize("content", [b"", b"not a model", toy_graph()])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(UsageError, match="E_MODEL_INVALID"):
        load_model(path)


def test_a_newer_contract_asks_for_a_newer_medssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("medssl_cli.deploy.onnx_file.CONTRACT_VERSION", 3)
        write_toy_model(tmp_path / "model.onnx")

    with pytest.raises(UsageError, match="follows contract 3"):
        load_model(tmp_path / "model.onnx")


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    model = onnx.load_from_string(toy_graph())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    hidden = onnx.load_from_string(toy_graph())
    hidden.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))

    for outside in (model, hidden):
        (tmp_path / "model.onnx").write_bytes(attach(outside.SerializeToString(), toy_bundle()))
        with pytest.raises(UsageError, match="weights in another file"):
            load_model(tmp_path / "model.onnx")


def test_operators_that_need_foreign_code_are_refused(tmp_path: Path) -> None:
    model = onnx.load_from_string(toy_graph())
    model.graph.node[0].domain = "com.example"
    (tmp_path / "model.onnx").write_bytes(attach(model.SerializeToString(), toy_bundle()))

    with pytest.raises(UsageError, match="not standard ONNX"):
        load_model(tmp_path / "model.onnx")


def test_a_model_that_was_never_proven_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="never compared"):
        load_model(write_toy_model(tmp_path / "model.onnx", parity=None))


def test_a_bundle_of_another_shape_is_refused_by_the_names_of_its_faults(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(seal(toy_graph(), '{"task": "x", "colour": "blue"}'))

    with pytest.raises(UsageError, match="colour"):
        load_model(tmp_path / "model.onnx")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E_NOT_FOUND"):
        load_model(tmp_path / "model.onnx")


def test_the_model_knows_its_training_patients_without_their_keys() -> None:
    bundle = toy_bundle(trained_on=(patient_digest("patient-one"),))

    assert bundle.has_seen("patient-one")
    assert not bundle.has_seen("patient-two")
    assert "patient-one" not in bundle.to_json()


@pytest.mark.parametrize("changes", [{"classes": {2: "b"}}, {"task": "../x"}, {"trained_on": ("f" * 16, "0" * 16)},
    {"in_channels": 2}, {"activation": "sigmoid"}, {"label_ignore": ("bright",)},
    {"classes": {1: "a", 2: "b"}, "label_classes": {"a": (1, 2), "b": (2,)}}])  # fmt: skip
def test_impossible_bundles_cannot_be_made(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        toy_bundle(**changes)


def test_a_small_model_takes_little_memory_to_read(tmp_path: Path) -> None:
    path = write_toy_model(tmp_path / "model.onnx")
    code = (
        "import resource, sys; from pathlib import Path; from medssl_cli.deploy.bundle import load_model; "
        "resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000)); load_model(Path(sys.argv[1]))"
    )

    done = subprocess.run([sys.executable, "-c", code, str(path)], env=ENVIRONMENT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_a_model_from_before_classes_had_members_is_scored_by_name_or_else_by_value() -> None:
    old = toy_bundle(classes={1: "liver", 2: "spleen"}, label_classes=None)
    new = toy_bundle(
        classes={1: "spleen", 2: "liver"}, label_classes={"liver": ("Leber", 6), "spleen": (7,)}, label_ignore=(9,)
    )

    assert dict(old.head.wanted.classes) == {"liver": ("liver", 1), "spleen": ("spleen", 2)}
    assert list(new.head.wanted.classes.items()) == [("spleen", (7,)), ("liver", ("Leber", 6))]
    assert new.head.wanted.ignore == (9,)
    assert Bundle.model_validate_json(new.to_json()).head == new.head


def test_a_model_of_overlapping_classes_says_how_it_is_read_and_older_ones_are_softmax() -> None:
    regions = toy_bundle(
        classes={1: "a", 2: "b"}, label_classes={"a": (1, 2), "b": (2,)}, activation="sigmoid"
    )  # fmt: skip
    document = json.loads(toy_bundle().to_json())
    del document["head"]["activation"]

    assert Bundle.model_validate_json(regions.to_json()).head == regions.head
    assert [port.sizes[1] for port in (*regions.outputs, *toy_bundle().outputs)] == [2, 2]  # no output of background
    assert Bundle.model_validate(document).head == toy_bundle().head


def test_a_model_of_contract_1_is_one_of_masks(tmp_path: Path) -> None:
    """Kept as the version before wrote it; its window and classes were fields of the bundle."""
    path = Path(__file__).parents[1] / "golden" / "models" / "toy-of-one-channel.onnx"

    data, bundle, _ = load_model(path)

    assert {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}["medssl.contract"] == "1"
    assert (bundle.contract_version, bundle.head.kind, bundle.takes_flat) == (2, "masks", False)
    assert (bundle.head.words, bundle.call_size) == (("bright",), bundle.inputs[0].sizes[2:])
    assert Bundle.model_validate_json(bundle.to_json()) == bundle == read_bundle(path)
