"""Every command: what it answers, how it refuses, and that stdout carries results and nothing else."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import Exit
from medssl_cli.cli.app import app
from medssl_cli.engine.runs import Manifest, start_run
from medssl_cli.formats.nifti import read_nifti, write_nifti
from medssl_cli.recipe import load_recipe, parse_yaml
from tests import warm
from tests.command import medssl
from tests.dicom_factory import ct_series
from tests.environment import ENVIRONMENT, ROOT
from tests.toy_cache import toy_cache
from tests.toy_model import write_toy_model

MAIN = [sys.executable, "-m", "medssl_cli"]
TINY = "{name: unet, channels: [4, 8, 8], strides: [1, 2, 2], num_res_units: 1}"
TASK_RECIPE = f"""# Two balls.
schema: 1
name: balls
backbone: {TINY}
task: {{name: segmentation, classes: {{1: ball_1, 2: ball_2}}}}
data: {{modality: CT, window_hu: [-200, 300], crop_size: [16, 16, 16], batch_size: 1}}
optimizer: {{learning_rate: 1.0e-3}}
steps: 2
validate_every: 2
"""
PRETRAIN_SETTINGS = [
    "backbone={name: unet, channels: [4, 8, 16], strides: [2, 2, 2], num_res_units: 1}",
    "data.spacing_mm=[2.0, 2.0, 2.0]",
    "data.crop_size=[8, 8, 32]",
    "data.batch_size=1",
    "method.projector_dim=32",
    "steps=2",
    "log_every=1",
]


def one_document(result: Any) -> Any:
    """The JSON document that stdout consists of."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def in_a_process(*arguments: object) -> Any:
    """The JSON document of a command that runs by itself: training changes settings of its whole process."""
    done = warm.run(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_scan(path: Path) -> Path:
    """A CT-like NIfTI file with a warm block that the toy model marks."""
    voxels = np.full((20, 18, 10), -1000, np.int16)
    voxels[2:7, 3:11, 1:4] = 200
    write_nifti(path, voxels, np.diag([0.9, 0.7, 2.5, 1.0]))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder with one of each thing that a command may be given, right and wrong."""
    root = tmp_path_factory.mktemp("place")
    cache = toy_cache(root / "cache", num_patients=8)
    files = SimpleNamespace(
        root=root,
        cache=cache.root,
        model=write_toy_model(root / "toy.onnx", modality="CT"),
        scan=write_scan(root / "scan.nii.gz"),
        task=root / "balls.yaml",
        junk=root / "junk.onnx",
        damaged=root / "damaged.onnx",
        empty=root / "empty",
        pretrain_run=root / "unfinished",
        task_run=root / "unfinished-task",
    )
    files.task.write_text(TASK_RECIPE)
    files.junk.write_bytes(b"junk" * 100)
    files.damaged.write_bytes(files.model.read_bytes()[:-1])
    files.empty.mkdir()
    (root / "faulty.yaml").write_text("schema: 1\nschema: 1\n")
    (root / "latin.yaml").write_bytes(b"# r\xe9sum\xe9\nschema: 1\n")
    (root / "names.txt").write_text("no image")
    start_run(files.task_run, "finetune", load_recipe(files.task), Manifest({"train": []}, {}))
    recipe = load_recipe(ROOT / "recipes/pretrain/voco-tiny.yaml")
    start_run(files.pretrain_run, "pretrain", recipe, Manifest({"train": []}, {}))
    return files


@pytest.fixture(autouse=True)
def _inside(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place.root)
    yield
    assert not (place.root / "medssl-cache").exists()


WRONG = [
    # What is typed, exit code, error code, what the hint contains
    ("ingest nowhere", 2, "E_NOT_FOUND", ""),
    ("ingest empty --cache new", 4, "E_NOTHING_USABLE", ""),
    ("ingest names.txt --cache new", 4, "E_NOTHING_USABLE", "report"),
    ("ingest scan.nii.gz --cache empty/..", 2, "E_USAGE", "--cache"),
    ("ingest scan.nii.gz --cache junk.onnx", 2, "E_NO_CACHE", "--cache"),
    ("ingest scan.nii.gz --cache new --modality XX", 2, "E_USAGE", "CT, MR"),
    ("ingest scan.nii.gz --cache new --patient-pattern (", 2, "E_USAGE", ""),
    ("ingest scan.nii.gz --cache new --label-set ../x", 2, "E_USAGE", ""),
    ("ingest dicomweb://user:secret@host/x --modality CT", 2, "E_USAGE", "MEDSSL_PACS_TOKEN"),
    ("ingest dicomweb://host/x", 2, "E_USAGE", "--modality"),
    ("ingest dicomweb://host/x dicomweb://host/y --modality CT", 2, "E_USAGE", ""),
    ("ingest dicomweb://host/x --modality CT --from 1.2.2024", 2, "E_USAGE", ""),
    ("ingest dicomweb+http://127.0.0.1:9/x --modality CT --cache new-pacs", 74, "E_PACS", "port"),
    ("ingest scan.nii.gz --from 2024-01-01", 2, "E_USAGE", ""),
    ("ingest scan.nii.gz --max-quarantine some", 2, "E_USAGE", ""),
    ("ingest scan.nii.gz --assume-orientation RAX", 2, "E_USAGE", ""),
    ("ingest scan.nii.gz --cache new-key --key-file nowhere", 5, "E_KEY", "--key-file"),
    ("pretrain", 2, "E_NO_CACHE", "medssl ingest"),
    ("pretrain --recipe vocco --cache cache", 2, "E_RECIPE_NOT_FOUND", "did you mean 'voco'?"),
    ("pretrain --recipe none.yaml --cache cache", 2, "E_RECIPE_NOT_FOUND", ""),
    ("pretrain --recipe faulty.yaml --cache cache", 2, "E_RECIPE", ""),
    ("pretrain --recipe balls.yaml --cache cache", 2, "E_RECIPE", "medssl finetune"),
    ("pretrain --recipe voco-tiny --cache cache --set steps", 2, "E_RECIPE", "--set data.batch_size=2"),
    ("pretrain --recipe voco-tiny --cache cache --set stepz=3", 2, "E_RECIPE", ""),
    ("pretrain --recipe voco-tiny --cache cache --set backbone.name=unett", 2, "E_UNKNOWN_NAME", "'unet'"),
    ("pretrain --recipe voco-tiny --cache cache --set data.crop_size=[7,7,7]", 2, "E_CANVAS", ""),
    ("pretrain --recipe voco-tiny --cache cache --set data.modality=PT", 4, "E_CACHE_EMPTY", "data.modality=CT"),
    ("pretrain --recipe voco-tiny --cache cache --device tpu --run r-tpu", 2, "E_DEVICE", ""),
    ("pretrain --recipe voco-tiny --cache cache --run unfinished", 2, "E_RECIPE_CHANGED", "--run"),
    ("finetune --task heart-sek", 2, "E_RECIPE_NOT_FOUND", "did you mean 'heart-seg'?"),
    ("plan --task heart-sek --cache cache", 2, "E_RECIPE_NOT_FOUND", "did you mean 'heart-seg'?"),
    ("plan --labels seg --cache nowhere", 2, "E_NO_CACHE", "medssl ingest"),
    ("plan --labels seg --cache cache -o nowhere/my.yaml", 2, "E_NOT_FOUND", "check the spelling"),
    ("finetune --task balls.yaml", 2, "E_NO_CACHE", "medssl ingest"),
    ("finetune --task balls.yaml --cache cache --fraction 0", 2, "E_USAGE", "--fraction 0.1"),
    ("recipes check xray-abnormal-tiny --set data.spacing_mm=[1,1,1]", 2, "E_RECIPE", "leave data.spacing_mm out"),
    ("recipes check balls.yaml --cache cache --set task.classes=[heart]", 2, "E_LABEL_CLASSES", "ball_1"),
    ("evaluate unfinished --cache cache --probe knn --label-set other", 2, "E_USAGE", "leave one out"),
    ("finetune --task ../nothing.yaml --cache cache", 2, "E_RECIPE_NOT_FOUND", ""),
    ("finetune --task balls.yaml --cache cache --init empty", 2, "E_NO_RUN", "./runs"),
    ("finetune --task balls.yaml --cache cache --init unfinished", 2, "E_RUN_UNFINISHED", "medssl pretrain"),
    ("finetune --task balls.yaml --cache cache --set task.label_set=other", 4, "E_NO_LABELS", "--label-set"),
    ("finetune --task balls.yaml --cache cache --set task.name=segment", 2, "E_UNKNOWN_NAME", "'segmentation'"),
    ("finetune --task xray-abnormal --cache cache", 4, "E_NO_LABELS", "table of findings"),
    ("finetune --task xray-boxes --cache cache", 4, "E_NO_LABELS", "table of boxes"),
    ("finetune --task balls.yaml --cache cache --device cuda:99 --run r-cuda", 2, "E_DEVICE", "doctor"),
    ("cache audit --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache crops cubes --label-set nodules --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache duplicates --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache manifest list.json --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache forget --patient zzz --cache cache", 2, "E_NOT_FOUND", "cache ls"),
    ("key show --key-file nowhere", 5, "E_KEY", "--key-file"),
    ("key init --key-file /proc/nowhere/key", 74, "E_IO", ""),
    ("evaluate toy.onnx", 2, "E_NO_CACHE", "medssl ingest"),
    ("evaluate nowhere --cache cache", 2, "E_NOT_FOUND", ""),
    ("evaluate empty --cache cache", 2, "E_NO_RUN", "./runs"),
    ("evaluate unfinished-task --cache cache", 2, "E_RUN_UNFINISHED", ""),
    ("evaluate unfinished --cache cache --probe linear", 2, "E_USAGE", "--labels nih"),
    ("evaluate unfinished --cache cache --labels nih", 2, "E_USAGE", "--labels nih"),
    ("evaluate unfinished --cache cache --probe knn --labels nih", 2, "E_RUN_UNFINISHED", "medssl pretrain"),
    ("evaluate unfinished-task --cache cache --probe knn --labels nih", 2, "E_NO_RUN", "medssl pretrain"),
    ("evaluate toy.onnx --cache cache --min-auroc 0.5", 2, "E_USAGE", "Dice"),
    ("evaluate junk.onnx --cache cache", 2, "E_MODEL_INVALID", "medssl export"),
    ("evaluate damaged.onnx --cache cache", 5, "E_MODEL_CORRUPT", ""),
    ("study labels --task heart-sek --init unfinished", 2, "E_RECIPE_NOT_FOUND", "did you mean 'heart-seg'?"),
    ("study labels --task balls.yaml --init unfinished --patients few", 2, "E_USAGE", "for example 5,10,20,40"),
    ("study labels --task balls.yaml --init unfinished --cache cache", 2, "E_RUN_UNFINISHED", "medssl pretrain"),
    ("study probes --init unfinished --ask nih:", 2, "E_USAGE", "nih:any"),
    ("study probes --init unfinished --ask level --cache cache", 2, "E_RUN_UNFINISHED", "medssl pretrain"),
    ("export unfinished-task", 2, "E_USAGE", "--install"),
    ("export nowhere out.onnx --cache cache", 2, "E_NO_RUN", "./runs"),
    ("export unfinished-task out.onnx --cache cache", 2, "E_RUN_UNFINISHED", ""),
    ("infer nowhere --task toy.onnx", 2, "E_NOT_FOUND", ""),
    ("infer scan.nii.gz --task heart-seg", 2, "E_NO_MODEL", "medssl finetune --task heart-seg"),
    ("infer scan.nii.gz --task none.onnx", 2, "E_NOT_FOUND", ""),
    ("infer scan.nii.gz --task junk.onnx", 2, "E_MODEL_INVALID", "medssl export"),
    ("infer scan.nii.gz --task damaged.onnx", 5, "E_MODEL_CORRUPT", ""),
    ("infer scan.nii.gz --task toy.onnx --device tpu", 2, "E_DEVICE", "cpu"),
    ("infer scan.nii.gz --task toy.onnx --device cuda:99", 2, "E_DEVICE", "cpu"),
    ("infer empty --task toy.onnx -o out-empty", 4, "E_NOTHING_USABLE", ""),
    ("infer names.txt --task toy.onnx -o out-text", 4, "E_NOTHING_USABLE", "report"),
    ("infer scan.nii.gz --task toy.onnx --part 9/8", 2, "E_USAGE", "3/8"),
    ("infer scan.nii.gz --task toy.onnx --watch empty", 2, "E_USAGE", "--part"),
    ("infer --task toy.onnx --watch empty --series s1", 2, "E_USAGE", "rules"),
    ("infer --task toy.onnx --watch nowhere", 2, "E_NOT_FOUND", "spelling"),
    ("infer scan.nii.gz --task toy.onnx --series slices=few", 2, "E_USAGE", "slices>=40"),
    ("infer scan.nii.gz --task toy.onnx --workers 2 --cluster tcp://h:1", 2, "E_USAGE", "leave one out"),
    ("listen --task toy.onnx", 2, "E_USAGE", "--peer"),
    ("listen --task toy.onnx --peer A=b", 2, "E_USAGE", "HOST:PORT"),
    ("listen --task none.onnx --peer A", 2, "E_NOT_FOUND", ""),
    ("recipes show vocco", 2, "E_RECIPE_NOT_FOUND", "did you mean 'voco'?"),
    ("recipes copy vocco mine.yaml", 2, "E_RECIPE_NOT_FOUND", "did you mean 'voco'?"),
    ("recipes copy voco names.txt", 2, "E_OUTPUT_EXISTS", ""),
    ("recipes copy voco no/such/folder.yaml", 74, "E_IO", "permissions"),
    ("recipes plan --recipe vocco --cache cache", 2, "E_RECIPE_NOT_FOUND", "did you mean 'voco'?"),
    ("recipes plan --recipe balls.yaml --cache cache", 2, "E_RECIPE", "pre-training"),
    ("recipes plan --recipe voco-tiny --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("recipes check faulty.yaml", 2, "E_RECIPE", ""),
    ("recipes check balls.yaml --split-file names.txt", 2, "E_USAGE", "add --cache"),
    ("recipes check balls.yaml --cache cache --split-file nowhere.json", 2, "E_SPLIT_FILE", "spelling"),
    ("recipes check voco-tiny --cache cache --split-file test=names.txt", 2, "E_USAGE", "leave --split-file out"),
    ("recipes check latin.yaml", 2, "E_RECIPE", ""),
    ("recipes check voco-tiny --set method.objectiv=v2", 2, "E_RECIPE", ""),
    ("weights import nowhere.pt imported", 2, "E_NOT_FOUND", "spelling"),
    ("weights import names.txt imported", 2, "E_WEIGHTS_FILE", ""),
    ("weights export nowhere weights.pt --as monai-swinunetr", 2, "E_NO_RUN", ""),
    ("models show heart-seg", 2, "E_NO_MODEL", "medssl export RUN --install"),
    ("models verify heart-seg", 2, "E_NO_MODEL", "medssl export RUN --install"),
    ("models pack models.zip", 2, "E_USAGE", "--all"),
    ("models pack models.zip heart-seg", 2, "E_NO_MODEL", "medssl export RUN --install"),
    ("models unpack nowhere.zip", 2, "E_NOT_FOUND", ""),
    ("models unpack names.txt", 2, "E_PACK_INVALID", "medssl models pack"),
    ("models remove heart-seg", 2, "E_NO_MODEL", ""),
    ("models add nowhere.onnx", 2, "E_NOT_FOUND", ""),
    ("models add junk.onnx", 2, "E_MODEL_INVALID", "medssl export"),
    ("models add damaged.onnx", 5, "E_MODEL_CORRUPT", ""),
    ("cache ls", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache labels --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache show abc --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache show 1 --cache cache", 2, "E_NOT_FOUND", "medssl cache ls"),
    ("cache verify --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache rebuild --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache export out --cache empty", 2, "E_NO_CACHE", "medssl ingest"),
    ("cache export out 1 --cache cache", 2, "E_NOT_FOUND", "medssl cache ls"),
    ("cache export names.txt --cache cache", 74, "E_IO", "another place"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "exit_code", "code", "hint"), WRONG, ids=[row[0] for row in WRONG])
def test_wrong_input_is_refused_with_a_code_and_a_hint(typed: str, exit_code: int, code: str, hint: str) -> None:
    result = medssl(*shlex.split(typed))

    assert result.exit_code == exit_code, result.stderr
    found = re.search(r"^error: ([EWS]_[A-Z_0-9]+): (.+)", result.stderr, re.MULTILINE)
    assert found is not None, result.stderr
    assert found[1] == code
    advice = re.search(r"\n\nhint: (.+)$", result.stderr.rstrip(), re.DOTALL)
    assert advice is not None, result.stderr
    assert hint in advice[1]
    assert "Traceback" not in result.stderr
    assert "bug in medssl" not in result.stderr


NOTHING_TO_GET_WRONG = ("demo", "doctor", "recipes ls", "models ls")


def test_every_command_has_a_row_of_wrong_input() -> None:
    typed = {" ".join(row[0].split()[:2]) if row[0].split()[0] in GROUPS else row[0].split()[0] for row in WRONG}

    assert {name for name in COMMANDS if name not in NOTHING_TO_GET_WRONG} == typed
    assert {row[2] for row in WRONG} <= set(CODES)


WRITING = [
    "ingest scan.nii.gz --cache cache/inner",
    "ingest scan.nii.gz --cache cache --private-map cache/map.json",
    "ingest scan.nii.gz --cache cache --report cache/report.json",
    "pretrain --recipe voco-tiny --cache cache --run cache/run",
    "finetune --task balls.yaml --cache cache --run cache",
    "plan --labels seg --cache cache -o cache/items/my.yaml",
    "export unfinished-task cache/model.onnx --cache cache",
    "infer scan.nii.gz --task toy.onnx -o cache/out",
    "infer scan.nii.gz --task toy.onnx --log-file cache/log",
    "listen --task toy.onnx --peer CT1 --spool cache/spool",
    "cache export cache/niftis --cache cache",
    "cache manifest cache/list.json --cache cache",
    "recipes copy voco cache/voco.yaml",
    "weights export unfinished cache/x.pt",
    "study labels --task balls.yaml --cache cache --patients 1 --arm 'a: seed=1' -o cache/study",
    "study probes --init unfinished --ask linear:seg --cache cache -o cache/probes",
]


@pytest.mark.parametrize("typed", WRITING)
def test_nothing_but_images_and_labels_is_written_into_a_cache(place: SimpleNamespace, typed: str) -> None:
    before = sorted(place.cache.rglob("*"))
    result = medssl(*shlex.split(typed))

    assert "error: E_USAGE: " in result.stderr
    assert "would lie in the cache" in result.stderr
    assert result.exit_code == Exit.USAGE
    assert sorted(place.cache.rglob("*")) == before


def test_all_faults_of_a_recipe_are_reported_at_once() -> None:
    result = medssl("recipes", "check", "voco-tiny", "--set", "stepz=3", "--set", "data.batch_size=-1")

    assert result.exit_code == Exit.USAGE
    assert "2 faults" in result.stderr
    assert "stepz: unknown key; did you mean 'steps'?" in result.stderr
    assert "data.batch_size" in result.stderr


NOT_PARSED = [
    "ingest",
    "infer scan.nii.gz",
    "finetune",
    "finetune --task balls.yaml --max-minutes inf",
    "pretrain --bogus",
    "pretrain --max-minutes inf",
    "plan --labels seg --minutes inf",
    "cache shw",
    "foo",
]


@pytest.mark.parametrize("typed", NOT_PARSED)
def test_what_cannot_be_parsed_is_usage_too(typed: str) -> None:
    result = medssl(*shlex.split(typed))

    assert result.exit_code == Exit.USAGE
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_bug_shows_where_and_not_what(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Mustermann^Max")

    monkeypatch.setattr("medssl_cli.recipe.find_recipe", fail)
    result = medssl("recipes", "show", "voco")

    assert result.exit_code == Exit.BUG
    assert "error: this is a bug in medssl: RuntimeError" in result.stderr
    assert "hint: " in result.stderr
    assert "Mustermann" not in result.stderr


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")])
def test_a_lack_of_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("medssl_cli.recipe.find_recipe", fail)
    result = medssl("recipes", "show", "voco")

    assert result.exit_code == Exit.IO
    assert "error: E_MEMORY: " in result.stderr
    assert "data.batch_size" in result.stderr


def _commands() -> dict[str, Any]:
    """Every command by the words that are typed."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        members = getattr(command, "commands", None)
        found |= {name: command} if members is None else {f"{name} {key}": sub for key, sub in members.items()}
    return found


COMMANDS = _commands()
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_shows_examples_that_the_command_accepts(name: str) -> None:
    result = medssl(*name.split(), "--help")
    examples = re.findall(rf"medssl {name}\b.*", COMMANDS[name].callback.__doc__)

    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert examples
    for example in examples:
        arguments = shlex.split(example)[1 + len(name.split()) :]
        COMMANDS[name].make_context(name, arguments)


def test_there_are_as_many_commands_as_promised() -> None:
    promised = ["ingest", "pretrain", "finetune", "evaluate", "export", "infer", "demo", "doctor"]
    helpers = {"recipes": "ls show copy check plan", "models": "ls show add remove", "cache": "ls show verify export"}
    promised += [f"{group} {name}" for group, names in helpers.items() for name in names.split()]

    assert set(promised) <= set(COMMANDS)


def test_the_whole_road_prints_one_document_per_command(place: SimpleNamespace, tmp_path: Path) -> None:
    ct_series(tmp_path / "ct", positions_mm=[0, 5, 10, 15, 20])
    settings = [part for setting in PRETRAIN_SETTINGS for part in ("--set", setting)]
    cpu = ("--cache", place.cache, "--device", "cpu", "--json")

    ingested = one_document(medssl("ingest", tmp_path / "ct", "--cache", tmp_path / "cache", "--json"))
    learnt = in_a_process("pretrain", "--recipe", "voco-tiny", *settings, "--run", tmp_path / "ssl", *cpu)
    tuned = in_a_process("finetune", "--task", place.task, "--run", tmp_path / "run", *cpu)
    scores = one_document(medssl("evaluate", tmp_path / "run", "-o", tmp_path / "elsewhere", *cpu))
    exported = one_document(medssl("export", tmp_path / "run", "--install", "--cases", 1, *cpu[:2], "--json"))
    masks = one_document(medssl("infer", place.scan, "--task", "balls", "-o", tmp_path / "out", *cpu[2:]))

    assert ingested["counts"]["accepted"] == 5
    assert (learnt["steps"], tuned["steps"]) == (2, 2)
    assert scores["task"] == exported["task"] == masks["task"] == "balls"
    assert exported["installed"]
    assert f"images of {scores['num_patients']} patients, split test" in medssl("models", "show", "balls").stdout
    assert (masks["done"], masks["refused"]) == (1, 0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "scan_balls.nii.gz", "scan_balls.png", "measurements.csv", "report.json", "report.jsonl",
    }  # fmt: skip
    gate = medssl("evaluate", tmp_path / "run", "--cache", place.cache, "--device", "cpu", "--min-dice", "0.999")
    assert gate.exit_code == Exit.GATE
    assert "error: E_GATE_DICE" in gate.stderr


@pytest.mark.parametrize(
    "typed",
    [
        "recipes ls --json",
        "recipes check voco-tiny --json",
        "models ls --json",
        "cache ls --json --cache cache",
        "cache verify --json --cache cache",
        "doctor --json --cache cache",
        "ingest scan.nii.gz --modality CT --dry-run --json",
        "infer scan.nii.gz --task toy.onnx -o out-json --device cpu --json",
        "infer scan.nii.gz --task toy.onnx -o out-json --device cpu --json --quiet",
    ],
)
def test_json_is_one_document_and_quiet_is_silent(typed: str) -> None:
    result = warm.run(*shlex.split(typed))

    assert result.returncode == 0, result.stderr
    assert isinstance(json.loads(result.stdout), dict | list)
    assert "--quiet" not in typed or result.stderr == ""


@pytest.mark.parametrize(
    "typed",
    [
        "ingest scan.nii.gz --modality CT --cache quiet-cache --quiet",
        "infer scan.nii.gz --task toy.onnx -o out-quiet --device cpu -q",
        "cache export out-nifti --cache cache --quiet",
        "cache verify --cache cache --quiet",
    ],
)
def test_quiet_leaves_stderr_empty(typed: str) -> None:
    result = medssl(*shlex.split(typed))

    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout


def test_quiet_does_not_silence_errors() -> None:
    assert "error: E_NOT_FOUND" in medssl("ingest", "nowhere", "--quiet").stderr


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MAIN, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**ENVIRONMENT, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # Linux says EIO when the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return written.decode()


@pytest.mark.parametrize(
    "typed",
    ["--help", "infer --help", "cache ls --cache cache", "infer scan.nii.gz -t toy.onnx -o out-tty --overwrite"],
)
def test_no_color_is_respected(typed: str) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*?(3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")

    plain = on_a_terminal(*shlex.split(typed), NO_COLOR="1")

    assert len(plain) > 20
    assert not colour.search(plain)
    assert typed != "--help" or colour.search(on_a_terminal("--help"))


def test_recipes_can_be_listed_shown_copied_and_checked(place: SimpleNamespace, tmp_path: Path) -> None:
    shipped = (ROOT / "recipes/tasks/heart-seg.yaml").read_text()

    listed = one_document(medssl("recipes", "ls", "--json"))
    shown = medssl("recipes", "show", "heart-seg")
    copied = medssl("recipes", "copy", "heart-seg", tmp_path / "mine.yaml")
    checked = one_document(medssl("recipes", "check", tmp_path / "mine.yaml", "--set", "steps=7", "--json"))

    assert {"voco", "voco-tiny"} <= set(listed["pretrain"])
    assert {"heart-seg", "hippocampus-seg"} <= set(listed["tasks"])
    assert shown.stdout == (tmp_path / "mine.yaml").read_text() == shipped
    assert f"medssl recipes check {tmp_path / 'mine.yaml'}" in copied.stdout
    assert checked["recipe"]["steps"] == 7
    assert checked["recipe"]["name"] == parse_yaml(shipped, source="heart-seg")["name"]
    for name in (*listed["pretrain"], *listed["tasks"]):
        assert re.search(rf"{name} +\w", medssl("recipes", "ls").stdout)


def test_a_plan_is_a_line_for_pretrain(place: SimpleNamespace) -> None:
    """Cubes of 64 mm on a canvas of 384 x 384 x 128 mm: nearly all of it is padding."""
    typed = ("recipes", "plan", "--recipe", "voco-tiny", "--cache", place.cache, "--set", "seed=3")

    document = one_document(medssl(*typed, "--json"))
    printed = medssl(*typed)

    assert document["proposal"]["recipe_fit"]["padding"] > 0.9
    assert document["proposal"]["fit"]["padding"] < 0.1
    line = printed.stdout.splitlines()[-1]
    assert line.startswith(f"next: medssl pretrain --recipe voco-tiny --cache {place.cache} --set seed=3")
    settings = [part for part in shlex.split(line) if "=" in part]
    assert settings == ["seed=3", *document["settings"]]
    assert document["settings"][0].startswith("data.spacing_mm=")
    rows = [part for setting in settings for part in ("--set", setting)]
    changed = one_document(medssl("recipes", "check", "voco-tiny", *rows, "--json"))
    assert changed["recipe"]["data"]["crop_size"] == document["proposal"]["canvas"]["crop_size"]
    suits = medssl("recipes", "plan", "--recipe", "voco-tiny", "--cache", place.cache, *rows)
    assert "the recipe's canvas suits this cache" in suits.stdout


def test_any_file_can_be_shown() -> None:
    assert "schema: 1" in medssl("recipes", "show", "latin.yaml").stdout


def test_models_can_be_added_shown_listed_and_removed(place: SimpleNamespace, tmp_path: Path) -> None:
    where = ("--models", tmp_path / "models")

    assert "medssl export RUN --install" in medssl("models", "ls", *where).stdout
    added = medssl("models", "add", place.model, *where)
    again = medssl("models", "add", place.model, *where)
    shown = one_document(medssl("models", "show", "toy-seg", "--json", *where))
    card = medssl("models", "show", "toy-seg", *where)
    written = medssl("models", "show", "toy-seg", "--card", tmp_path / "card.html", *where)
    packed = one_document(medssl("models", "pack", tmp_path / "models.zip", "--all", "--json", *where))
    verified = medssl("models", "verify", *where)
    elsewhere = medssl("models", "unpack", tmp_path / "models.zip", "--models", tmp_path / "other")
    listed = one_document(medssl("models", "ls", "--json", *where))
    near = medssl("models", "show", "toy-sek", *where)
    used = medssl("infer", place.scan, "-t", "toy-seg", "-o", tmp_path / "out", "--device", "cpu", *where)
    removed = medssl("models", "remove", "toy-seg", *where)

    done = (added, again, card, written, verified, elsewhere, used, removed)
    assert [result.exit_code for result in done] == [0] * len(done)
    assert card.stdout.startswith("# toy-seg\n")
    assert (tmp_path / "card.html").read_text().startswith("<!doctype html>")
    assert [model["name"] for model in packed["models"]] == ["toy-seg"]
    assert elsewhere.stdout == "toy-seg: installed\n"
    assert (tmp_path / "other" / "toy-seg.onnx").read_bytes() == place.model.read_bytes()
    assert "installed as toy-seg" in added.stdout
    assert (shown["task"], shown["head"]["classes"], shown["modality"]) == ("toy-seg", {"1": "bright"}, "CT")
    assert [(model["name"], model["problem"]) for model in listed] == [("toy-seg", "")]
    assert "did you mean 'toy-seg'?" in near.stderr
    assert one_document(medssl("models", "ls", "--json", *where)) == []


def test_a_damaged_installed_model_is_listed_and_never_used(place: SimpleNamespace, tmp_path: Path) -> None:
    where = ("--models", tmp_path / "models")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "toy-seg.onnx").write_bytes(place.damaged.read_bytes())

    assert medssl("models", "show", "toy-seg", *where).exit_code == Exit.GATE
    assert medssl("models", "verify", *where).exit_code == Exit.GATE
    result = medssl("infer", place.scan, "-t", "toy-seg", "-o", tmp_path / "out", *where)
    assert (result.exit_code, (tmp_path / "out").exists()) == (Exit.GATE, False)
    assert "error: E_MODEL_CORRUPT" in result.stderr


def test_an_existing_different_output_is_kept(place: SimpleNamespace, tmp_path: Path) -> None:
    mask = tmp_path / "scan_toy-seg.nii.gz"
    mask.write_bytes(b"somebody's work")
    command = ("infer", place.scan, "--task", place.model, "-o", tmp_path, "--device", "cpu")

    refused = medssl(*command)
    assert refused.exit_code == Exit.NOTHING
    assert "E_OUTPUT_EXISTS" in refused.stdout + refused.stderr
    assert medssl(*command, "--overwrite").exit_code == Exit.NOTHING
    assert mask.read_bytes() == b"somebody's work"


def test_export_refuses_to_replace_a_file_that_is_no_model(place: SimpleNamespace, tmp_path: Path) -> None:
    result = medssl("export", place.task_run, place.root / "names.txt", "--cache", place.cache)

    assert result.exit_code == Exit.USAGE
    assert (place.root / "names.txt").read_text() == "no image"


def test_a_cache_can_be_listed_shown_and_exported(place: SimpleNamespace, tmp_path: Path) -> None:
    where = ("--cache", place.cache)

    items = one_document(medssl("cache", "ls", "--json", *where))
    shown = one_document(medssl("cache", "show", items[3]["item_id"][:8], *where))
    some = medssl("cache", "export", tmp_path / "some", items[0]["item_id"], *where)
    medssl("cache", "export", tmp_path / "all", *where)

    assert len(items) == 8
    assert items[0]["item_id"][:10] in medssl("cache", "ls", *where).stdout
    assert shown == items[3]
    assert "2 files" in some.stdout
    assert len(list((tmp_path / "all").iterdir())) == 16
    for item in items[:2]:
        label = read_nifti(tmp_path / "all" / f"{item['item_id']}_seg.nii.gz").image.volume
        counts = np.bincount(label.voxels.astype(int).ravel())
        assert {str(k): int(n) for k, n in enumerate(counts) if k and n} == item["labels"]["seg"]["voxels_per_class"]


@pytest.mark.parametrize("name", ["image.b2nd", "label-seg-*.b2nd", "item.json", "label-seg.json"])
def test_one_flipped_byte_in_a_cache_is_found(tmp_path: Path, name: str) -> None:
    cache = toy_cache(tmp_path / "cache", num_patients=2, size=16)
    assert medssl("cache", "verify", "--cache", cache.root).exit_code == 0
    victim = sorted(cache.root.glob(f"items/*/*/{name}"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)

    found = medssl("cache", "verify", "--cache", cache.root, "--json")
    examined = medssl("doctor", "--cache", cache.root, "--json")

    assert found.exit_code == Exit.GATE
    document = json.loads(found.stdout)
    assert document["checked"] == 2
    assert [(fault["item_id"], fault["code"]) for fault in document["problems"]] == [
        (victim.parent.name, "E_CACHE_CORRUPT")
    ]
    assert examined.exit_code == Exit.GATE
    assert "1 damaged" in next(line["detail"] for line in json.loads(examined.stdout) if line["what"] == "cache")


def test_doctor_finds_this_machine_sound(place: SimpleNamespace) -> None:
    result = medssl("doctor", "--cache", place.cache, "--json")

    findings = {line["what"]: line["status"] for line in one_document(result)}
    assert {"medssl", "ONNX Runtime", "torch device", "cache", "models"} <= set(findings)
    assert "problem" not in findings.values()


def test_the_version_is_printed() -> None:
    result = medssl("--version")

    assert re.fullmatch(r"medssl \d+\.\d+\.\d+\n", result.stdout)


def test_a_reader_that_goes_away_is_no_error() -> None:
    pipe = f"{shlex.join([*MAIN, 'recipes', 'show', 'voco'])} | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, env=ENVIRONMENT)

    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


def test_the_cache_is_named_by_option_or_environment(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSSL_CACHE", str(place.cache))

    assert len(one_document(medssl("cache", "ls", "--json"))) == 8
    assert medssl("cache", "ls", "--cache", place.empty).exit_code == Exit.USAGE


@pytest.mark.parametrize("option", ["--max-ram", "--max-volume-gib", "--tile-timeout"])
def test_no_limit_and_more_threads_than_cores_are_fine(tmp_path: Path, option: str) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.full((6, 5, 4), 80, np.int16), np.eye(4))
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    typed = ["infer", tmp_path / "a.nii.gz", "-t", model, "-o", tmp_path / "out", "--no-preview", "--device", "cpu"]

    answer = medssl(*typed, option, "inf", "--threads", "100000")

    assert answer.exit_code == 0, answer.output
