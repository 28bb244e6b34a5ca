"""What every folder in tasks/ must keep, whoever wrote it; a new task needs only an entry in EXAMPLES.

The folder toy_tasks/ holds a fourth task and its recipe, put beside the real ones by extending the path of the package:
a task is its folder, and nothing else has to know it.
"""

import copy
import json
import math
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medssl_cli import tasks
from medssl_cli.base import plugins
from medssl_cli.base.errors import Exit
from medssl_cli.nn.backbones import Backbone
from medssl_cli.tasks import FigureOfMerit, SupervisionBase, TaskLosses, TaskNetwork, load_part, task_of_head
from medssl_cli.tasks.detection.assignment import assign
from medssl_cli.tasks.detection.decode import Grid
from tests.command import medssl
from tests.finding_cache import finding_cache

TOY_TASKS = Path(__file__).parent / "toy_tasks"
TOY_NAMES = [module.name for module in pkgutil.iter_modules([str(TOY_TASKS)])]
NAMES = [*plugins.names("task"), *TOY_NAMES]
SIZE = (8, 8, 8)
SLICES = "slices of "
each_name = pytest.mark.parametrize("name", NAMES)


@dataclass(frozen=True)
class Example:
    """Smallest options of a task, and targets that an image can be told from."""

    options: dict[str, Any]
    targets: Callable[[Tensor], Tensor]
    spatial_dims: int = 3


@pytest.fixture(autouse=True)
def toy_tasks_lie_beside_the_real_ones(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(TOY_TASKS)])
    yield
    for name in [
        name for name in sys.modules if name.startswith(tuple(f"{tasks.__name__}.{toy}" for toy in TOY_NAMES))
    ]:
        del sys.modules[name]
    for toy in TOY_NAMES:
        vars(tasks).pop(toy, None)


def brightness(images: Tensor) -> Tensor:
    """Whether each image is brighter than the batch, and that nobody knows about the darkest one."""
    means = images.mean(dim=(1, 2, 3, 4))
    return torch.where(means > means.min(), (means > means.median()).float(), torch.nan)[:, None]


def bright_quarter(images: Tensor) -> Tensor:
    """What places of maps of 1, 2 and 4 pixels should say where each image has a box of 3 x 4 pixels."""
    boxes = torch.tensor([[[1.0, 2, 4, 6, 0], [0, 0, 0, 0, -1]]]).expand(len(images), -1, -1)
    return assign(Grid.of((SIZE[0], SIZE[1]), (1, 2, 4)), boxes)


EXAMPLES: dict[str, Example] = {
    "segmentation": Example({"classes": {1: "bright"}}, lambda images: (images[:, 0] > 0).long()),
    "classification": Example({"label_set": "toy", "classes": ["bright"]}, brightness),
    "estimate": Example(
        {"label_set": "toy", "classes": ["bright"]}, lambda images: images.mean(dim=(1, 2, 3, 4))[:, None]
    ),
    "detection": Example({"label_set": "toy", "classes": ["ball"], "num_levels": 2, "width": 8}, bright_quarter, 2),
}


STACKING = [name for name in plugins.names("task") if load_part(name, "network").NETWORK.takes_stacks]
each_task = pytest.mark.parametrize("name", [*NAMES, *(SLICES + name for name in STACKING)])


class TinyBackbone(Backbone):
    """Two convolutions without a norm, so that every image is on its own."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__(channels=(6, 8), strides=(1, 2), embedding_levels=(0, 1), spatial_dims=spatial_dims)
        convolution = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.fine = convolution(1, 6, 3, padding=1)
        self.coarse = convolution(6, 8, 2, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x).relu()
        return [fine, self.coarse(fine).tanh()]


def build(name: str, seed: int = 0) -> TaskNetwork:
    """A task on a network of volumes, or on one of slices where its name says so."""
    plain = name.removeprefix(SLICES)
    module = load_part(plain, "network")
    torch.manual_seed(seed)
    backbone = TinyBackbone(EXAMPLES[plain].spatial_dims if plain == name else 2)
    task: TaskNetwork = module.NETWORK(backbone, module.OPTIONS.model_validate(EXAMPLES[plain].options))
    return task


def images(name: str, batch: int = 2) -> Tensor:
    size = SIZE[: EXAMPLES[name.removeprefix(SLICES)].spatial_dims]
    return torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(1))


def targets_of(name: str, batch: Tensor) -> Tensor:
    return EXAMPLES[name.removeprefix(SLICES)].targets(batch)


def loss_of(task: nn.Module, name: str) -> TaskLosses:
    batch = images(name, 4)
    losses: TaskLosses = task.loss(task(batch), targets_of(name, batch))  # type: ignore[operator]
    return losses


def test_tasks_are_found_and_each_has_an_example() -> None:
    assert "segmentation" in NAMES
    assert set(NAMES) == set(EXAMPLES)


@each_name
def test_options_refuse_unknown_keys(name: str) -> None:
    with pytest.raises(ValidationError, match="no_such_option"):
        load_part(name, "network").OPTIONS.model_validate({**EXAMPLES[name].options, "no_such_option": 1})


@each_name
def test_options_name_the_label_set_and_the_classes_for_the_engine(name: str) -> None:
    options = load_part(name, "network").OPTIONS.model_validate(EXAMPLES[name].options)

    assert options.label_set
    assert options.classes


@each_name
def test_its_folder_holds_all_that_other_rooms_ask_for(name: str) -> None:
    folder = plugins.load("task", name)

    assert issubclass(load_part(name, "network").NETWORK, TaskNetwork)
    assert issubclass(load_part(name, "targets").SUPERVISION, SupervisionBase)
    assert load_part(name, "decode").__doc__
    scores = load_part(name, "scores")
    assert not load_part(name, "targets").SUPERVISION.is_exportable or (scores.usable and scores.of_model)
    assert isinstance(folder.FIGURE, FigureOfMerit)
    assert isinstance(folder.HEAD, str)


@each_name
def test_decoding_and_page_load_no_torch(name: str) -> None:
    """In a process of its own; inference and reports may load them."""
    code = (
        "import importlib, sys, medssl_cli.tasks as tasks\n"
        f"tasks.__path__ = [*tasks.__path__, {str(TOY_TASKS)!r}]\n"
        f"for part in ('decode', 'page'): importlib.import_module('medssl_cli.tasks.{name}.' + part)\n"
        "sys.exit(' '.join({'torch', 'monai', 'lightning_fabric'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.returncode == 0


def test_heads_differ_so_that_an_exported_model_is_scored_by_one_task() -> None:
    heads = [plugins.load("task", name).HEAD for name in NAMES]

    assert len(set(heads)) == len(heads)
    assert plugins.load("task", task_of_head("masks")).HEAD == "masks"


def test_the_toy_task_is_trained_and_scored_without_being_listed(tmp_path: Path) -> None:
    cache, root = finding_cache(tmp_path / "cache", num_patients=30), tmp_path / "run"
    recipe = TOY_TASKS / "estimate.yaml"

    checked = medssl("recipes", "check", recipe, "--cache", cache.root)
    trained = medssl("finetune", "--task", recipe, "--cache", cache.root, "--run", root, "--device", "cpu")
    scored = medssl("evaluate", root, "--cache", cache.root, "--min-score", 0.6, "--device", "cpu")
    refused = medssl("evaluate", root, "--cache", cache.root, "--min-score", 1.1, "--device", "cpu")
    other = medssl("evaluate", root, "--cache", cache.root, "--min-dice", 0.5, "--device", "cpu")
    exported = medssl("export", root, tmp_path / "model.onnx", "--cache", cache.root)

    assert (checked.exit_code, trained.exit_code, scored.exit_code) == (0, 0, 0), trained.stderr + scored.stderr
    assert "best validation agreement" in trained.stdout
    assert "mean agreement" in scored.stdout
    assert json.loads((root / "evaluation-test" / "scores.json").read_text())["agreement"] > 0.6
    assert "Estimate" in (root / "evaluation-test" / "page.html").read_text()
    assert (refused.exit_code, "E_GATE_SCORE" in refused.stderr) == (Exit.GATE, True)
    assert (other.exit_code, "toy-estimate has no Dice" in other.stderr) == (Exit.USAGE, True)
    assert (exported.exit_code, "E_TASK_EXPORT" in exported.stderr) == (Exit.USAGE, True)


def test_stacks_of_slices_are_tried() -> None:
    assert "segmentation" in STACKING


@each_task
def test_the_backbone_is_an_attribute_that_pretrained_weights_can_enter(name: str) -> None:
    task = build(name)

    assert isinstance(task.backbone, TinyBackbone)
    assert any(key.startswith("backbone.") for key in task.state_dict())
    assert any(not key.startswith("backbone.") for key in task.state_dict())


@each_task
def test_it_says_what_pretraining_may_have_learnt_beside_the_backbone(name: str) -> None:
    task = build(name)

    own = {id(part) for part in task.modules()}
    assert all(id(module) in own for module in task.kept().values())


@each_task
def test_loss_is_a_finite_scalar_that_is_the_sum_of_its_parts(name: str) -> None:
    losses = loss_of(build(name).train(), name)

    assert losses.total.shape == ()
    assert losses.parts
    assert all(part.shape == () and math.isfinite(part.item()) for part in losses.parts.values())
    torch.testing.assert_close(losses.total, torch.stack(list(losses.parts.values())).sum())


@each_task
def test_gradient_reaches_every_parameter(name: str) -> None:
    task = build(name).train()

    loss_of(task, name).total.backward()

    unreached = [key for key, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unreached == []


@each_task
def test_answers_and_losses_are_deterministic_in_evaluation(name: str) -> None:
    task = build(name).eval()

    with torch.no_grad():
        first, again = task(images(name)), task(images(name))

    assert torch.equal(first, again)
    assert torch.equal(loss_of(task, name).total, loss_of(task, name).total)


@each_task
def test_images_of_a_batch_do_not_see_each_other_in_evaluation(name: str) -> None:
    task = build(name).eval()
    batch = images(name, 3)

    with torch.no_grad():
        together = task(batch)
        alone = torch.cat([task(image[None]) for image in batch])

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@each_task
def test_state_dict_is_all_there_is_to_save(name: str) -> None:
    task, other = build(name), build(name, seed=5)
    assert not torch.equal(loss_of(other.eval(), name).total, loss_of(task.eval(), name).total)

    other.load_state_dict(copy.deepcopy(task.state_dict()), strict=True)

    assert torch.equal(loss_of(other.eval(), name).total, loss_of(task.eval(), name).total)


@each_task
def test_a_few_steps_on_one_batch_lower_the_loss(name: str) -> None:
    task = build(name).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for _ in range(90):
        total = loss_of(task, name).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())

    assert losses[-1] < 0.7 * losses[0]


@each_task
def test_neither_inputs_nor_targets_change(name: str) -> None:
    task = build(name).train()
    batch = images(name)
    targets = targets_of(name, batch)
    before = batch.clone(), targets.clone()

    task.loss(task(batch), targets).total.backward()  # type: ignore[operator]

    assert torch.equal(batch, before[0])
    assert torch.equal(targets.nan_to_num(-1), before[1].nan_to_num(-1))
