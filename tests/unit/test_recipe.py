"""Recipes: plain data, every fault at once and in words, nothing accepted silently."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medssl_cli.base import plugins
from medssl_cli.base.errors import Exit, UsageError
from medssl_cli.base.plain_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import (
    Augmentation,
    Inference,
    PretrainRecipe,
    TaskRecipe,
    apply_override,
    dump_recipe,
    find_recipe,
    load_recipe,
    recipe_hash,
    recipe_names,
    to_yaml,
    validate_recipe,
)

Found = TypeVar("Found")
TASK = """
schema: 1
name: toy
backbone: {name: unet, channels: [4, 8], strides: [1, 2]}
task: {name: segmentation, classes: {1: ball}}
data: {window_hu: [-100, 300], crop_size: [16, 16, 16], batch_size: 2}
optimizer: {learning_rate: 1.0e-3}
steps: 10
"""


def document(**changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load(TASK), **changes}


def faults_of(changes: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        validate_recipe(document(**changes), source="toy")
    assert caught.value.code == "E_RECIPE"
    assert caught.value.exit_code == Exit.USAGE
    return caught.value.message


def refusal(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, source="toy.yaml")
    assert caught.value.code == "E_RECIPE"
    return caught.value.message


def data(**changes: Any) -> dict[str, Any]:
    return {**document()["data"], **changes}


def test_task_or_method_decides_what_a_recipe_is() -> None:
    pretrain = document(method={"name": "voco"})
    del pretrain["task"], pretrain["name"]

    assert isinstance(validate_recipe(document(), source="toy"), TaskRecipe)
    assert isinstance(validate_recipe(pretrain, source="toy"), PretrainRecipe)


def test_all_faults_are_reported_at_once() -> None:
    message = faults_of(
        {
            "steps": 0,
            "sede": 1,
            "data": data(crop_size=[16, 16], batch_size="many"),
            "optimizer": {},
            "precision": "fp8",
        }
    )

    assert message.startswith("toy has 6 faults:")
    for where in ("steps", "sede", "data.crop_size.2", "data.batch_size", "optimizer.learning_rate", "precision"):
        assert f"\n  {where}: " in message


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"stepps": 1}, "stepps: unknown key; did you mean 'steps'?"),
        ({"shema": 1}, "shema: unknown key; did you mean 'schema'?"),
        ({"data": data(crop_sizes=[1, 1, 1])}, "data.crop_sizes: unknown key; did you mean 'crop_size'?"),
        ({"augmentation": {"noise": 1}}, "augmentation.noise: unknown key; did you mean 'noise_std'?"),
        ({"inference": {"zzz": 1}}, "inference.zzz: unknown key; choose from: tile_size, overlap, mirror_axes"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(changes: dict[str, Any], hint: str) -> None:
    assert hint in faults_of(changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": data(zscore=True)}, "exactly one of window_hu and zscore"),
        ({"data": data(window_hu=None)}, "exactly one of window_hu and zscore"),
        ({"data": data(window_hu=[300, -100])}, "low < high"),
        ({"data": data(window_hu=[float("nan"), 1])}, "finite"),
        ({"data": data(window_hu=[float("-inf"), float("inf")])}, "finite"),
        ({"data": data(spacing_mm=[1, 0, 1])}, "data.spacing_mm.1"),
        ({"data": data(spacing_mm=[1, float("inf"), 1])}, "data.spacing_mm.1"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate"),
        ({"optimizer": {"learning_rate": 1, "weight_decay": float("nan")}}, "optimizer.weight_decay"),
        ({"optimizer": {"learning_rate": 1, "weight_decay": float("inf")}}, "optimizer.weight_decay"),
        ({"augmentation": {"noise_std": float("inf")}}, "augmentation.noise_std"),
        ({"augmentation": {"flip_prob": float("nan")}}, "augmentation.flip_prob"),
        ({"augmentation": {"flip_axes": [3]}}, "augmentation.flip_axes.0"),
        ({"augmentation": {"flip_axes": [0, 0]}}, "augmentation.flip_axes: name each axis once"),
        ({"inference": {"mirror_axes": [1, 1]}}, "inference.mirror_axes: name each axis once"),
        ({"inference": {"overlap": 1}}, "inference.overlap"),
        ({"ema_decay": 1}, "ema_decay"),
        ({"steps": 1.5}, "steps"),
        ({"name": "../escape"}, "name"),
        ({"schema": 2}, "schema"),
        ({"intended_use": "x" * 501}, "at most 500 characters"),
        ({"augmentation": {"scale_range": [2, 1]}}, "augmentation.scale_range: must be (least, largest) (got [2, 1])"),
        ({"steps": True}, "steps: needs a number (got True)"),
        ({"data": data(crop_size=[True, 16, 16])}, "data.crop_size.0: needs a number (got True)"),
        ({"ema_decay": False}, "ema_decay: needs a number (got False)"),
        ({"schema": True}, "schema"),
    ],
)
def test_impossible_values_are_refused_where_they_stand(changes: dict[str, Any], words: str) -> None:
    assert words in faults_of(changes)


def test_numbers_that_yaml_reads_as_text_are_numbers_all_the_same() -> None:
    # YAML 1.1 wants a point in floats: 1e-4 is a string to it.
    assert yaml.safe_load("1e-4") == "1e-4"

    recipe = validate_recipe(parse_yaml(TASK.replace("1.0e-3", "1e-4"), source="toy"), source="toy")

    assert recipe.optimizer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "repeated key: a (line 1)"),
        ("x: {a: 1, b: {c: 1, c: 2}}", "repeated key: c"),
        ("a: &x [1]\nb: *x", "aliases are not allowed (line 2)"),
        ("a: !!python/object/apply:os.getcwd []", "tags are not allowed"),
        ("a: !!set {b}", "tags are not allowed"),
        ('a: !!float ""', "tags are not allowed"),
        ("a: ! b", "tags are not allowed"),
        ("a: [1", "(line 1)"),
        ("a: b: c", "(line 1)"),
        ("? [1]\n: 2", "unhashable key"),
        ("a: 2020-99-99", "month"),
        ("a: " + "9" * 5000, "64 bits"),
        ("a: 1\n---\na: 2", "document"),
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("a: \x00", "not allowed"),
        ("a: '\udc80'", "not allowed"),
        ("[" * 100_000, "recursion"),
        ("- " * 1000, "recursion"),
    ],
)
def test_only_plain_yaml_is_read(text: str, words: str) -> None:
    assert words in refusal(text)


def test_a_bomb_of_aliases_does_not_go_off() -> None:
    levels = "\n".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9))

    assert "aliases" in refusal(f"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n{levels}")


def test_size_and_depth_are_limited_exactly() -> None:
    comment = "a: 1 #"

    assert parse_yaml(comment + "x" * (MAX_BYTES - len(comment)), source="toy") == {"a": 1}
    assert "larger than 256 KB" in refusal(comment + "x" * (MAX_BYTES - len(comment) + 1))
    # The document itself is one level, each bracket another, the value at the bottom the last.
    deepest = MAX_DEPTH - 2
    assert parse_yaml("a: " + "[" * deepest + "1" + "]" * deepest, source="toy")
    assert "deeper than 20 levels" in refusal("a: " + "[" * (deepest + 1) + "1" + "]" * (deepest + 1))


@given(raw=st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_a_recipe_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("raw") / "any.yaml"
    path.write_bytes(raw)

    with pytest.raises(UsageError, match="E_RECIPE"):
        load_recipe(path)


INDICATORS = ["a", "1", "1.5", ": ", "- ", "? ", "\n", "  ", "{", "}", "[", "]", ", ", "'", '"', "&x ", "*x", "#", "\t"]
DIRECTIVES = ["!!int ", "!t ", "|\n", ">\n", "---\n", "...\n", "%YAML 1.1\n", "<<: ", "@", "`", "\x85", "\ufeff", "é"]
SCALARS = ["=", "~", ".nan", "-.inf", "0x_", "2020-02-30", "1:30", "0001-01-01T00:00:00+23:59", "\\ud800", "9" * 4400]
yaml_fragments = st.sampled_from([*INDICATORS, *DIRECTIVES, *SCALARS])


def read_or_refused(parse: Callable[[], Found], *, words: str = "") -> Found | None:
    """What was read, or None after a refusal as it should be; nothing else may be raised."""
    try:
        return parse()
    except UsageError as error:
        refused = error
    assert refused.code == "E_RECIPE"
    assert words in refused.message
    return None


@given(text=st.lists(yaml_fragments, max_size=25).map("".join))
@settings(deadline=None, max_examples=400)
def test_any_pieces_of_yaml_are_a_mapping_or_a_usage_error(text: str) -> None:
    found = read_or_refused(lambda: parse_yaml(text, source="any"))

    assert found is None or isinstance(found, dict)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=4),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(TaskRecipe.model_fields)), value=plain_values)
@settings(deadline=None, max_examples=80)
def test_any_value_of_any_key_is_valid_or_a_usage_error(key: str, value: Any) -> None:
    name = TaskRecipe.model_fields[key].alias or key

    recipe = read_or_refused(lambda: validate_recipe(document(**{name: value}), source="any"), words=name)

    assert recipe is None or isinstance(recipe, TaskRecipe)


def test_overrides_reach_nested_keys_and_make_sections(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(TASK)

    recipe = load_recipe(
        path,
        [
            "steps=7",
            "data.crop_size=[8, 8, 8]",
            "augmentation.flip_prob=0",
            "backbone.channels=[2, 4]",
            "task.classes={1: a, 2: b}",
            "intended_use=a = b",
            "optimizer.max_grad_norm=null",
        ],
    )

    assert isinstance(recipe, TaskRecipe)
    assert (recipe.steps, recipe.data.crop_size, recipe.augmentation.flip_prob) == (7, (8, 8, 8), 0)
    assert recipe.backbone.options["channels"] == [2, 4]
    assert recipe.task.options["classes"] == {1: "a", 2: "b"}
    assert recipe.intended_use == "a = b"
    assert recipe.optimizer.max_grad_norm is None


def test_the_last_override_of_a_key_counts() -> None:
    raw = document()

    apply_override(raw, "steps=1")
    apply_override(raw, "steps=2")

    assert raw["steps"] == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "is not key=value"),
        ("=5", "is not key=value"),
        ("steps.deep=5", "steps is a value, not a section"),
        ("steps=[1", "--set steps"),
        ("steps=a: b", "--set steps"),
        ("steps=*x", "aliases are not allowed"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(override: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_override(document(), override)

    assert caught.value.code == "E_RECIPE"
    assert words in caught.value.message


def test_an_unknown_override_is_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(TASK)

    with pytest.raises(UsageError, match="did you mean 'batch_size'"):
        load_recipe(path, ["data.batchsize=2"])


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_bytes(b"a: \xff\xfe")

    with pytest.raises(UsageError, match=r"toy\.yaml is not text in UTF-8"):
        load_recipe(path)


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TASK)

    assert find_recipe(str(path)) == path
    assert {"voco", "voco-tiny"} <= set(recipe_names("pretrain"))
    assert find_recipe("voco").name == "voco.yaml"
    with pytest.raises(UsageError, match="E_RECIPE_NOT_FOUND") as caught:
        find_recipe("vocoo")
    assert caught.value.hint == "did you mean 'voco'?"
    with pytest.raises(UsageError, match="E_RECIPE_NOT_FOUND"):
        find_recipe("voco", kinds=("tasks",))
    with pytest.raises(UsageError, match="E_RECIPE_NOT_FOUND"):
        find_recipe(str(tmp_path / "missing.yaml"))


def test_a_resolved_recipe_says_everything_and_survives_the_round_trip() -> None:
    recipe = validate_recipe(document(), source="toy")

    resolved = dump_recipe(recipe)
    again = validate_recipe(parse_yaml(to_yaml(resolved), source="lock"), source="lock")

    assert resolved["schema"] == 1
    assert resolved["schedule"]["name"] == "warmup_cosine"
    assert dump_recipe(again) == resolved
    assert recipe_hash(again) == recipe_hash(recipe)


def test_the_hash_sees_every_change_and_no_formatting() -> None:
    one = validate_recipe(document(), source="toy")
    defaults_written_out = validate_recipe(document(seed=0, accumulate=1), source="toy")
    other = validate_recipe(document(seed=1), source="toy")

    assert recipe_hash(one) == recipe_hash(defaults_written_out)
    assert recipe_hash(one) != recipe_hash(other)


def test_a_model_carries_preprocessing_and_nothing_of_training() -> None:
    recipe = validate_recipe(document(), source="toy")

    assert recipe.data.preprocessing == Preprocessing(window_hu=(-100.0, 300.0))
    assert type(recipe.data.preprocessing) is Preprocessing


def test_the_tile_is_the_crop_unless_it_is_named() -> None:
    plain = validate_recipe(document(), source="toy")
    named = validate_recipe(document(inference={"tile_size": [32, 32, 8]}), source="toy")

    assert isinstance(plain, TaskRecipe)
    assert isinstance(named, TaskRecipe)
    assert (plain.tile_size, named.tile_size) == ((16, 16, 16), (32, 32, 8))


def test_recipes_do_not_change_after_they_were_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inference().overlap = 0.1
    with pytest.raises(ValidationError, match="frozen"):
        Augmentation().flip_prob = 0.1


@pytest.mark.parametrize("kind", sorted(plugins.PACKAGES))
def test_an_unknown_plugin_comes_with_the_nearest_known_one(kind: str) -> None:
    known = plugins.names(kind)
    assert known == sorted(known)

    with pytest.raises(UsageError, match="E_UNKNOWN_NAME") as caught:
        plugins.load(kind, known[0] + "x")

    assert caught.value.hint == f"did you mean {known[0]!r}?"
    assert all(plugins.load(kind, name).__name__.endswith(f".{name}") for name in known)


@pytest.mark.parametrize("name", ["", ".", "..recipe", "segmentation.x", "_private", "os", "__init__"])
def test_only_files_of_the_folder_are_plugins(name: str) -> None:
    with pytest.raises(UsageError, match="E_UNKNOWN_NAME"):
        plugins.load("task", name)


def test_suggestions_list_everything_when_nothing_is_near() -> None:
    assert plugins.suggest("zzz", ["one", "two"]) == "choose from: one, two"
    assert plugins.suggest("zzz", []) == "there are none"


def test_a_network_is_mirrored_only_along_axes_that_training_flipped() -> None:
    mirror = {"mirror_axes": [0]}

    assert "mirror_axes [0] are never flipped" in faults_of({"inference": mirror, "augmentation": {"flip_prob": 0.0}})
    assert "mirror_axes [0] are never flipped" in faults_of({"inference": mirror, "augmentation": {"flip_axes": [1]}})
    recipe = validate_recipe(document(inference=mirror, augmentation={"flip_axes": [0]}), source="toy")
    assert isinstance(recipe, TaskRecipe)
    assert recipe.inference.mirror_axes == (0,)
