"""Methods that compare views of an image: teachers, queues, centres, values of ignorance, refusals, two processes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medssl_cli.base import plugins
from medssl_cli.base.errors import UsageError
from medssl_cli.data.augmentation import Draws
from medssl_cli.methods import MethodBase, TrainingSet, Views
from medssl_cli.methods.dino import Method as Dino
from medssl_cli.methods.moco import Method as Moco
from medssl_cli.nn.backbones import Backbone
from tests.two_processes import WORLD, results_of_each

SMALL = {"hidden_dim": 8, "projection_dim": 6}
CASES: dict[str, dict[str, Any]] = {
    "simclr": {**SMALL, "num_layers": 3},
    "simclr all": {**SMALL, "same_patient": "negative"},
    "byol": SMALL,
    "moco": {**SMALL, "predictor_norm": True},
    "moco queue": {**SMALL, "variant": "v2", "queue_length": 8},
    "dino": {**SMALL, "num_outputs": 5, "num_small": 2, "freeze_last": 0.5},
}
TAUGHT = [name for name in CASES if not name.startswith("simclr")]
BATCH = 4
PATIENTS = torch.tensor([0, 0, 1, 2])
each_case = pytest.mark.parametrize("name", CASES)


class PatchNetwork(Backbone):
    """One convolution of patches, and a batch norm."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__(channels=(5,), strides=(2,), embedding_levels=(0,), spatial_dims=spatial_dims)
        self.conv = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(1, 5, 2, stride=2)
        self.batch_norm = (nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm3d)(5)

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
        return [self.batch_norm(self.conv(images)).tanh()]


def build(name: str, spatial_dims: int = 2) -> MethodBase:
    module = plugins.load("method", name.split()[0])
    torch.manual_seed(0)
    size = (8, 8, 1) if spatial_dims == 2 else (8, 8, 8)
    method: MethodBase = module.Method(PatchNetwork(spatial_dims), module.Options(**CASES[name]), size)
    method = method.double().train()
    method.require_batch(BATCH)
    method.begin(TrainingSet(torch.zeros(16).long(), torch.zeros(0).long(), 10, patients=torch.arange(16)))
    return method


def views_of(method: MethodBase, seed: int = 0, shard: int = 0, num_shards: int = 1) -> Views:
    """A step with random views of this shard's images."""
    random = torch.Generator().manual_seed(seed)
    crops = method.views().placed
    assert crops is not None
    groups = []
    for kind in [crops] if crops.small is None else [crops, crops.small]:
        size = kind.size[: method.backbone.spatial_dims]
        images = torch.randn(kind.number, BATCH, 1, *size, generator=random, dtype=torch.float64)
        groups.append(images.chunk(num_shards, dim=1)[shard].flatten(0, 1))
    patients = PATIENTS.chunk(num_shards)[shard]
    return Views(tuple(groups), Draws(random, shard, num_shards), patients=patients)


@each_case
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_they_learn_from_slices_and_from_volumes(name: str, spatial_dims: int) -> None:
    method = build(name, spatial_dims)

    losses = method.loss(views_of(method), progress=0.0)
    losses.total.backward()

    assert math.isfinite(losses.total.item())
    assert {"spread", "rank"} <= set(losses.diagnostics)
    assert all(parameter.grad is not None for parameter in method.backbone.parameters())


@each_case
def test_views_overlap_by_half_and_are_not_mirrored(name: str) -> None:
    crops = build(name).views().placed

    assert crops is not None
    assert crops.number == 2
    assert crops.changes.apart <= 0.25
    assert crops.changes.flip_prob == 0


@pytest.mark.parametrize("name", [name for name in CASES if name != "dino"])
def test_one_image_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="at least 2") as refused:
        build(name).require_batch(1)

    assert refused.value.code == "E_RECIPE"


def test_one_image_is_enough_where_images_are_not_compared() -> None:
    method = build("dino").eval()

    method.require_batch(1)

    whole = views_of(method)
    one = Views(tuple(group[: len(group) // BATCH] for group in whole.images), whole.draws)
    assert method.loss(one, 0.0).total.isfinite()


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("byol", "simclr", "moco")])
def test_projections_that_say_nothing_cost_the_baseline(name: str) -> None:
    method = build(name)
    with torch.no_grad():
        for part in (method.projector if hasattr(method, "projector") else method.head).modules():
            if isinstance(part, nn.Linear):
                part.weight.zero_()
                if part.bias is not None:
                    part.bias.zero_()
    views = views_of(method)
    alone = Views(views.images, views.draws, patients=torch.arange(BATCH))

    total = method.loss(alone, 0.0).total

    in_queue = {"moco queue": math.log(1 + 8)}  # which holds no patient's keys yet
    assert total.item() == pytest.approx(in_queue.get(name, method.baselines()["no_information"]), rel=1e-5)


def test_baselines_count_the_candidates() -> None:
    assert build("simclr all").baselines() == {"no_information": pytest.approx(math.log(2 * BATCH - 1))}
    assert build("simclr").baselines() == {"no_information": pytest.approx(math.log(2 * BATCH - 1))}
    assert build("byol").baselines() == {"no_information": 4.0}
    assert build("moco").baselines() == {"no_information": pytest.approx(4 * 0.2 * math.log(BATCH))}
    assert build("dino").baselines() == {"no_information": pytest.approx(math.log(5))}
    queue = build("moco queue").baselines()["no_information"]  # of 16 images one is the anchor's own patient's
    assert queue == pytest.approx(math.log(1 + 8 * 15 / 16))


@pytest.mark.parametrize("name", TAUGHT)
def test_the_teacher_starts_as_the_student_gets_no_gradient_and_follows(name: str) -> None:
    method = build(name)
    teacher = method.get_submodule("teacher")
    pairs = [(teacher.get_submodule("backbone"), method.backbone)]
    before = [parameter.clone() for parameter in pairs[0][0].parameters()]
    assert all(torch.equal(old, own) for old, own in zip(before, method.backbone.parameters(), strict=True))

    method.loss(views_of(method), 0.0).total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1.0)
    method.after_step(0.0)

    momentum = 0.996 if name == "dino" else 0.99
    for old, new in zip(before, teacher.get_submodule("backbone").parameters(), strict=True):
        torch.testing.assert_close(new, old + (1 - momentum))


def test_at_the_end_the_teacher_stands_still_and_that_of_a_queue_does_not() -> None:
    found = {}
    for name in ("moco", "moco queue"):
        method = build(name)
        with torch.no_grad():
            for parameter in method.backbone.parameters():
                parameter.add_(1.0)
        before = next(method.get_submodule("teacher").parameters()).clone()
        method.after_step(1.0)
        found[name] = next(method.get_submodule("teacher").parameters()) - before

    assert (found["moco"] == 0).all()
    torch.testing.assert_close(found["moco queue"], torch.full_like(found["moco queue"], 0.01))


@pytest.mark.parametrize(("name", "buffer"), [("moco queue", "queue.keys"), ("dino", "centre")])
def test_queue_and_centre_are_those_of_the_steps_that_were_done(name: str, buffer: str) -> None:
    method = build(name)
    before, views = method.get_buffer(buffer).clone(), views_of(method)

    method.before_step(0.0)
    first = method.loss(views, 0.0).total
    assert torch.equal(method.loss(views, 0.0).total, first)
    method.before_step(0.0)  # the step was left out
    assert torch.equal(method.loss(views, 0.0).total, first)
    assert torch.equal(method.get_buffer(buffer), before)
    method.after_step(1.0)

    assert not torch.equal(method.get_buffer(buffer), before)
    assert not torch.equal(method.loss(views, 0.0).total, first)


def test_the_centre_moves_to_the_mean_of_all_batches_of_a_step() -> None:
    method = build("dino")
    outputs = []
    for seed in (0, 1):
        views = views_of(method, seed)
        method.loss(views, 0.0)
        outputs.append(method.get_submodule("teacher")(views.images[0]))

    method.after_step(0.0)

    torch.testing.assert_close(method.get_buffer("centre"), 0.1 * torch.cat(outputs).mean(dim=0))


def test_the_last_layer_is_frozen_at_first() -> None:
    method = build("dino")
    assert isinstance(method, Dino)
    for progress, is_frozen in ((0.49, True), (0.5, False)):
        method.zero_grad()
        method.loss(views_of(method), progress).total.backward()
        method.after_backward(progress)
        assert (method.head.directions.grad is None) == is_frozen


def test_queues_of_odd_lengths_are_refused() -> None:
    method = build("moco queue")
    assert isinstance(method, Moco)
    with pytest.raises(UsageError, match="multiple of the batch of 3 images"):
        method.require_batch(3)
    with pytest.raises(UsageError, match="more than half of the 15 images"):
        method.begin(TrainingSet(torch.zeros(15).long(), torch.zeros(0).long(), 10))
    options = plugins.load("method", "moco").Options
    for settings in ({"variant": "v2"}, {"queue_length": 8}):
        with pytest.raises(ValueError, match="has a queue_length"):
            options(**settings)


def test_words_for_what_is_wrong() -> None:
    steps = [{"step": step, "loss": 5.0, "accuracy": 0.0, "spread": 1.0, "rank": 9.0} for step in range(0, 301, 10)]

    assert build("moco queue").health(steps) == ["keys are found by chance: 0.00% of 9"]
    early = [{**steps[0], "accuracy": 1.0}]
    (leak,) = build("moco queue").health(early)
    assert leak.startswith("keys were found at once, before step 100")
    assert build("moco").health(early) == []
    flat = [{**entry, "entropy": 0.99, "usage": 1.0} for entry in steps]
    assert build("dino").health(flat) == ["outputs are uniform: 99.0% of the largest entropy"]
    one = [{**entry, "entropy": 0.0, "usage": 0.1} for entry in steps]
    assert build("dino").health(one) == ["few outputs take all images: 10.0% of the largest entropy"]
    stuck = [{**entry, "entropy": 0.5, "usage": 0.5, "loss": math.log(5)} for entry in steps]
    assert build("dino").health(stuck) == ["the loss stays that of outputs that say nothing, 1.6094"]
    assert build("byol").health([{**entry, "spread": 0.01} for entry in steps]) != []


def step(name: str, shard: int, num_shards: int) -> list[Tensor]:
    """Losses and gradients of this shard's images in two steps, and what is kept of them."""
    method, found = build(name), []
    for seed in range(2):
        method.zero_grad()
        method.before_step(0.6)
        total = method.loss(views_of(method, seed, shard, num_shards), 0.6).total
        total.backward()
        trained = [each for each in method.parameters() if each.requires_grad]
        found += [total.detach(), *(torch.zeros(()) if each.grad is None else each.grad.clone() for each in trained)]
        method.after_step(0.6)
    return found + [each.double() for each in method.buffers() if each.numel() > 1]


def compute(rank: int) -> dict[str, list[Tensor]]:
    return {name: step(name, rank, WORLD) for name in CASES}


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """Results of each process, in order of rank."""
    return results_of_each(tmp_path_factory.mktemp("spread"), compute)


@each_case
def test_two_processes_are_one(name: str, spread: list[dict[str, list[Tensor]]]) -> None:
    together = step(name, 0, 1)

    for one, other, whole in zip(*(results[name] for results in spread), together, strict=True):
        torch.testing.assert_close((one + other) / 2, whole, rtol=1e-5, atol=1e-7)


def test_comparing_each_half_alone_gives_something_else() -> None:
    """So the test above would notice."""
    halves = [step("simclr", shard, WORLD)[0] for shard in range(WORLD)]

    assert abs(torch.stack(halves).mean() - step("simclr", 0, 1)[0]) > 1e-3
