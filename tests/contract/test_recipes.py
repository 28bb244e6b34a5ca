"""What every shipped recipe must keep. Golden files show in a diff what a change of code or recipe does to users.

MEDSSL_UPDATE_GOLDEN=1 pytest tests/contract/test_recipes.py writes tests/golden/recipes/ anew; read the diff.
"""

import os
from pathlib import Path

import pytest
from torch import nn

from medssl_cli.base.errors import UsageError
from medssl_cli.base.plain_yaml import parse_yaml
from medssl_cli.engine.build import build_method, build_task, check_recipe
from medssl_cli.recipe import (
    PretrainRecipe,
    Recipe,
    dump_recipe,
    find_recipe,
    load_recipe,
    recipe_folder,
    to_yaml,
    validate_recipe,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "recipes"
PATHS = sorted(recipe_folder().rglob("*.yaml"))
NAMES = [path.stem for path in PATHS]
each_recipe = pytest.mark.parametrize("name", NAMES)


def build(recipe: Recipe) -> nn.Module:
    return build_method(recipe) if isinstance(recipe, PretrainRecipe) else build_task(recipe)


def compare_with_golden(path: Path, text: str) -> None:
    if os.environ.get("MEDSSL_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), "write it with MEDSSL_UPDATE_GOLDEN=1 and read the diff"
    assert path.read_text(encoding="utf-8") == text


def shapes(network: nn.Module) -> str:
    """One line per tensor of the state, `name [shape]`, buffers and frozen parameters marked."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in network.named_parameters()} - trained
    lines = [f"# {sum(p.numel() for p in network.parameters() if p.requires_grad)} trained parameters"]
    for name, tensor in network.state_dict().items():
        kind = "" if name in trained else " frozen" if name in frozen else " buffer"
        lines.append(f"{name} {list(tensor.shape)}{kind}")
    return "\n".join(lines) + "\n"


def test_the_guards_see_the_recipes() -> None:
    assert len(PATHS) >= 4
    assert {"voco", "voco-tiny", "heart-seg", "hippocampus-seg"} <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES)  # a name is enough to find it
    assert {path.parent.name for path in PATHS} == {"pretrain", "tasks"}


@each_recipe
def test_the_header_says_what_it_does_how_to_run_it_what_it_needs_and_what_comes_out(name: str) -> None:
    kind = find_recipe(name).parent.name
    header = []
    for line in find_recipe(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line)

    assert len(header[0]) > 20
    assert header[0].endswith(".")
    for key in ("Command:", "Needs:", "Expected:"):
        found = [line for line in header if line.startswith(f"# {key}")]
        assert len(found) == 1, key
        assert found[0].removeprefix(f"# {key}").strip(), key
    command = next(line for line in header if "Command:" in line)
    words = {"pretrain": f"medssl pretrain --recipe {name} ", "tasks": f"medssl finetune --task {name} "}
    assert words[kind] in command + " "


@each_recipe
def test_it_is_of_the_kind_of_its_folder_and_named_like_its_file(name: str) -> None:
    recipe = load_recipe(find_recipe(name))

    assert isinstance(recipe, PretrainRecipe) == (find_recipe(name).parent.name == "pretrain")
    assert getattr(recipe, "name", name) == name


@each_recipe
def test_what_it_resolves_to_is_the_golden_file(name: str) -> None:
    text = to_yaml(dump_recipe(load_recipe(find_recipe(name))))

    resolved = parse_yaml(text, source="golden")
    assert dump_recipe(validate_recipe(resolved, source="golden")) == resolved  # a lock file is a recipe
    compare_with_golden(GOLDEN / f"{name}.yaml", text)


@each_recipe
def test_its_parameters_are_those_of_the_golden_file(name: str) -> None:
    network = build(load_recipe(find_recipe(name)))  # one at a time: a large one and its teacher take a gigabyte

    compare_with_golden(GOLDEN / f"{name}.parameters.txt", shapes(network))


def test_there_is_no_golden_file_without_a_recipe() -> None:
    expected = {f"{name}{suffix}" for name in NAMES for suffix in (".yaml", ".parameters.txt")}

    assert {path.name for path in GOLDEN.iterdir()} == expected


@pytest.mark.parametrize("name", ["voco-tiny", "hippocampus-seg", "heart-slices"])
def test_checking_builds_and_finds_what_the_text_cannot_show(name: str) -> None:
    check_recipe(load_recipe(find_recipe(name)))


@pytest.mark.parametrize(
    ("name", "override", "code"),
    [
        ("hippocampus-seg", "backbone.name=unett", "E_UNKNOWN_NAME"),
        ("hippocampus-seg", "backbone.chanels=[1]", "E_RECIPE"),
        ("hippocampus-seg", "backbone.channels=[8, 16]", "E_RECIPE"),
        ("hippocampus-seg", "backbone.channels=5", "E_RECIPE"),
        ("hippocampus-seg", "backbone.channels=[a, b, c, d]", "E_RECIPE"),
        ("hippocampus-seg", "backbone.strides=[2, 0, 2, 2]", "E_RECIPE"),
        ("hippocampus-seg", "backbone.norm=nrom", "E_RECIPE"),
        ("hippocampus-seg", "backbone.activation=unheard", "E_RECIPE"),
        ("hippocampus-seg", "backbone.dropout_prob=2", "E_RECIPE"),
        ("hippocampus-seg", "backbone.in_channels=3", "E_RECIPE"),
        ("hippocampus-seg", "task.name=segmentatoin", "E_UNKNOWN_NAME"),
        ("hippocampus-seg", "task.clases={1: a}", "E_RECIPE"),
        ("hippocampus-seg", "task.decoder.norm=nrom", "E_RECIPE"),
        ("hippocampus-seg", "task.decoder.widths=[8]", "E_RECIPE"),
        ("hippocampus-seg", "task.decoder.widths=[0, 0, 0]", "E_RECIPE"),
        ("hippocampus-seg", "data.crop_size=[30, 48, 32]", "E_CANVAS"),
        ("hippocampus-seg", "inference.tile_size=[33, 48, 32]", "E_CANVAS"),
        ("voco-tiny", "method.name=vocoo", "E_UNKNOWN_NAME"),
        ("voco-tiny", "method.base_gird=[3, 3, 1]", "E_RECIPE"),
        ("voco-tiny", "method.projector_dim=0", "E_RECIPE"),
        ("voco-tiny", "data.crop_size=[31, 32, 32]", "E_CANVAS"),
        ("voco-tiny", "data.crop_size=[16, 16, 16]", "E_CANVAS"),
        ("hippocampus-seg", "inference.tile_size=[16, 16, 16]", "E_CANVAS"),
        ("heart-slices", "data.crop_size=[150, 160, 8]", "E_CANVAS"),
        ("heart-slices", "data.spacing_mm=[1.5, 1.5, 8]", "E_RECIPE"),
        ("heart-slices", "task.relation.num_heads=7", "E_RECIPE"),
        ("joint-tiny", "method.relation={embedding_dim: 33, num_heads: 3}", "E_RECIPE"),
    ],
)
def test_faults_of_options_are_usage_errors(name: str, override: str, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_recipe(load_recipe(find_recipe(name), [override]))

    assert caught.value.code == code
