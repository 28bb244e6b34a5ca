"""Splits by name all the way: what `ingest` calls a case, a split file finds, a run keeps and an evaluation uses."""

import json
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.named_splits import GivenSplit, NamedItems
from medssl_cli.cache.split_files import NamedParts, read_split
from medssl_cli.cache.store import Cache
from medssl_cli.engine.build import build_method
from medssl_cli.engine.choices import Choices
from medssl_cli.engine.finetune import finetune
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.engine.runs import open_run
from medssl_cli.engine.training_parts import training_parts
from medssl_cli.engine.weights import Encoder
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.recipe import Named, TaskRecipe, load_recipe
from tests.brain_set import decathlon, nnunet_raw
from tests.command import medssl
from tests.e2e.test_training import pretrain_recipe
from tests.toy_cache import toy_cache
from tests.toy_recipes import balls_yaml

TASK = balls_yaml(validate_every=1)
NAMES = [f"case_{number:02d}" for number in range(8)]
FOLDS = [{"train": NAMES[:4], "val": NAMES[4:6]}, {"train": NAMES[2:6], "val": NAMES[:2]}]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose files were called `case_00` to `case_07`, a recipe and a split file."""
    root = tmp_path_factory.mktemp("site")
    toy_cache(root / "cache", num_patients=8, size=16, series=NAMES)
    (root / "task.yaml").write_text(TASK)
    (root / "splits_final.json").write_text(json.dumps(FOLDS))
    (root / "test.txt").write_text("case_06\ncase_07\n")
    return root


def keys(site: Path, names: list[str]) -> set[str]:
    of = Cache.open(site / "cache").pseudonyms.of
    records = {record.series_key: record.item_id for record in Cache.open(site / "cache").records()}
    return {records[of("series", name)] for name in names}


def test_a_run_keeps_the_split_of_the_file_and_evaluate_uses_it(site: Path, tmp_path: Path) -> None:
    test_list = tmp_path / "test.txt"
    test_list.write_text("case_06.nii.gz\nimagesTs/case_07.nii.gz\n")
    where = ["--cache", site / "cache", "--device", "cpu", "-q"]
    files = ["--split-file", site / "splits_final.json", "--split-file", f"test={test_list}"]

    trained = medssl("finetune", "--task", site / "task.yaml", "--run", tmp_path / "run", *files, "--fold", 1, *where)
    scored = medssl("evaluate", tmp_path / "run", "--json", *where)

    assert (trained.exit_code, scored.exit_code) == (0, 0), trained.stderr + scored.stderr
    manifest = open_run(tmp_path / "run").manifest
    parts = {part: {entry["item"] for entry in entries} for part, entries in manifest["splits"].items()}
    wanted = {"train": FOLDS[1]["train"], "val": FOLDS[1]["val"], "test": NAMES[6:]}
    assert parts == {part: keys(site, names) for part, names in wanted.items()}
    assert {case["item"] for case in json.loads(scored.stdout)["cases"]} == parts["test"]
    assert len(manifest["arguments"]["split_file"]["digest"]) == 40
    text = "".join(path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert "case_0" not in text  # names in clear are never stored


def test_a_pretraining_leaves_out_whom_the_file_tests(site: Path) -> None:
    given = GivenSplit(read_split(["test=" + str(site / "test.txt")]), skips_missing=False)
    recipe = pretrain_recipe(1)

    parts = training_parts(recipe, Cache.open(site / "cache"), {}, build_method(recipe).views(), Silence(), given)

    shown = {example.item_id for part in parts.parts for example in part.examples}
    assert shown == keys(site, NAMES[:6])


def test_a_pretraining_does_not_go_on_with_another_split(site: Path, tmp_path: Path) -> None:
    given = GivenSplit(read_split(["test=" + str(site / "test.txt")]), skips_missing=False)
    cache = Cache.open(site / "cache")
    pretrain(pretrain_recipe(1), cache, tmp_path / "run", device="cpu", talk=Silence(), split=given)

    with pytest.raises(UsageError) as refusal:
        pretrain(pretrain_recipe(1), cache, tmp_path / "run", device="cpu", talk=Silence())

    assert refusal.value.code == "E_RECIPE_CHANGED"


def test_the_same_run_does_not_go_on_with_another_split(site: Path, tmp_path: Path) -> None:
    words = ["finetune", "--task", site / "task.yaml", "--run", tmp_path, "--cache", site / "cache", "--device", "cpu"]
    assert medssl(*words, "--split-file", site / "splits_final.json").exit_code == 0

    other = medssl(*words, "--split-file", site / "splits_final.json", "--fold", 1)

    assert other.exit_code == 2
    assert "E_RECIPE_CHANGED" in other.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--split-file", "splits_final.json", "--fold", "2"], "E_USAGE", "no fold 2"),
        (["--split-file", "splits_final.json", "--num-folds", "5"], "E_USAGE", "names 2 folds, not 5"),
        (["--skip-missing"], "E_USAGE", "--split-file"),
        (["--fold", "5"], "E_USAGE", "0 to 4"),
        (
            ["--split-file", "unknown.json"],
            "E_SPLIT_NAMES",
            "1 of 3 names of the split file are not in the cache: case_99",
        ),
        (["--split-file", "leaking.json"], "E_SPLIT_PATIENT", "case_00 and case_00"),
        (["--split-file", "nowhere.json"], "E_SPLIT_FILE", "nowhere.json"),
    ],
)
def test_what_makes_no_split_is_refused_before_anything_is_written(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: str, said: str
) -> None:
    monkeypatch.chdir(site)
    (site / "unknown.json").write_text(json.dumps({"train": ["case_00", "case_99"], "val": ["case_01"]}))
    (site / "leaking.json").write_text(json.dumps({"train": ["case_00", "case_01"], "val": ["case_00"]}))

    done = medssl(
        "finetune", "--task", "task.yaml", "--cache", "cache", "--run", tmp_path / "run", "--device", "cpu", *words
    )

    assert done.exit_code == 2
    assert code in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_names_that_are_not_there_are_left_out_on_request(site: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial.json"
    partial.write_text(json.dumps({"train": ["case_00", "case_99"], "val": ["case_01"]}))
    words = ["finetune", "--task", site / "task.yaml", "--cache", site / "cache", "--run", tmp_path / "run"]

    done = medssl(*words, "--device", "cpu", "--split-file", partial, "--skip-missing")

    assert done.exit_code == 0, done.stderr
    assert "W_SPLIT_NAMES: 1 of 3 names" in done.stderr


@pytest.mark.parametrize("is_labelled", [True, False])
def test_test_patients_of_the_file_are_those_that_pre_training_must_not_know(
    site: Path, tmp_path: Path, is_labelled: bool
) -> None:
    cache = Cache.open(site / "cache")
    (tmp_path / "split.json").write_text(json.dumps({"train": NAMES[:2], "val": NAMES[2:4], "test": NAMES[4:]}))
    seen = frozenset(record.patient_key for record in cache.records())
    unet = Named.model_validate({"name": "unet", "channels": [4, 8], "strides": [1, 2], "num_res_units": 1})
    encoder = Encoder(unet, {}, "0" * 64, seen, labelled_patients=seen if is_labelled else frozenset())
    recipe = load_recipe(site / "task.yaml")
    assert isinstance(recipe, TaskRecipe)
    choices = Choices(split=GivenSplit(read_split([str(tmp_path / "split.json")])), encoder=encoder)
    heard = Heard()

    expected, code = (GateError, "E_SPLIT_LEAK") if is_labelled else (Stopped, "W_SPLIT_LEAK")
    with pytest.raises(expected, match=code):
        finetune(recipe, cache, tmp_path / "run", choices, device="cpu", talk=heard)

    assert sum("W_SPLIT_LEAK: pre-training has seen images (not labels) of 4" in note for note in heard.notes) == (
        not is_labelled
    )


class Stopped(Exception):  # noqa: N818 - not an error: the test has heard enough
    """The note that a test waits for."""


class Heard:
    """Notes; ends a training that says whom its weights have seen."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        if text.startswith("W_SPLIT_LEAK"):
            raise Stopped(text)

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Nobody asks."""


@pytest.mark.parametrize(("layout", "name"), [(nnunet_raw, "Brain_{:03d}"), (decathlon, "BRATS_{:03d}")])
def test_cases_are_found_by_the_names_that_their_layout_gives_them(tmp_path: Path, layout: Any, name: str) -> None:
    layout(tmp_path / "in", (1, 2))
    ingest([tmp_path / "in"], tmp_path / "cache", IngestOptions(workers=1, modality="MR"))
    cache = Cache.open(tmp_path / "cache")
    records = cache.records()

    one, other = (name.format(number) for number in (1, 2))
    found = NamedItems(records, cache.pseudonyms).match(NamedParts((one,), (f"imagesTr/{other}.nii.gz",)))

    assert not found.missing
    assert not found.ambiguous
    assert {part: len(items) for part, items in found.parts.items()} == {"train": 4, "val": 4}
    assert not found.parts["train"] & found.parts["val"]
