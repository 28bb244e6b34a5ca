"""The head that finds boxes: which places answer for which box, what wrong answers cost, and what comes out."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medssl_cli.cache.items import Box
from medssl_cli.cache.prepared import prepare
from medssl_cli.data.augmentation import Draws, augment_boxes
from medssl_cli.data.boxes import boxes_of, class_of, from_canvas, stacked, to_canvas
from medssl_cli.nn.backbones import resnet, unet
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe_sections import Augmentation
from medssl_cli.tasks.detection.assignment import CENTRE_RADIUS, assign
from medssl_cli.tasks.detection.decode import SIZE_PER_STRIDE, Grid, decode
from medssl_cli.tasks.detection.feature_pyramid import FeaturePyramid
from medssl_cli.tasks.detection.network import Answers, centredness, detection_losses
from medssl_cli.tasks.detection.network import DetectionNetwork as Task
from medssl_cli.tasks.detection.network import DetectionOptions as Options
from tests.finding_cache import finding_cache

SIZE = (64, 48)
STRIDES = (8, 16)
QUIET = {"intensity_scale": 0.0, "intensity_shift": 0.0}


def grid() -> Grid:
    return Grid.of(SIZE, STRIDES)


def random_boxes(number: int = 3, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (2, number, 2))
    high = low + rng.uniform(4, 40, (2, number, 2))
    classes = rng.integers(-1, 2, (2, number, 1))
    return torch.tensor(np.concatenate([low, high, classes], axis=-1), dtype=torch.float32)


def literal_assignment(boxes: Tensor) -> list[tuple[int, list[float]]]:
    """FCOS, section 3.1 and its centre sampling, one place after the other."""
    found = []
    low = 0.0
    for number, stride in enumerate(STRIDES):
        high = math.inf if number == len(STRIDES) - 1 else SIZE_PER_STRIDE * stride
        for i in range(SIZE[0] // stride):
            for j in range(SIZE[1] // stride):
                x, y = (i + 0.5) * stride, (j + 0.5) * stride
                best, answer = math.inf, (-1, [0.0] * 4)
                for x0, y0, x1, y1, label in boxes.tolist():
                    edges = [x - x0, y - y0, x1 - x, y1 - y]
                    is_inside = min(edges) > 0
                    is_near = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) <= CENTRE_RADIUS * stride
                    is_of_size = low < max(edges) <= high
                    area = (x1 - x0) * (y1 - y0)
                    if label >= 0 and is_inside and is_near and is_of_size and area < best:
                        best, answer = area, (int(label), edges)
                found.append(answer)
        low = high
    return found


@pytest.mark.parametrize("seed", range(5))
def test_places_answer_for_the_smallest_box_of_their_size_near_whose_centre_they_lie(seed: int) -> None:
    boxes = random_boxes(seed=seed)

    targets = assign(grid(), boxes)

    for image in range(2):
        for place, (label, edges) in enumerate(literal_assignment(boxes[image])):
            assert targets[image, place, 4].item() == label
            if label >= 0:
                assert targets[image, place, :4].tolist() == pytest.approx(edges, abs=1e-4)


def test_centredness_is_one_in_the_middle_and_none_at_an_edge() -> None:
    edges = torch.tensor([[5.0, 7, 5, 7], [2, 4, 8, 4], [0, 3, 9, 3]])

    torch.testing.assert_close(centredness(edges), torch.tensor([1.0, 0.5, 0.0]))


def test_losses_are_those_of_the_papers() -> None:
    targets = assign(grid(), random_boxes(seed=1))
    generator = torch.Generator().manual_seed(0)
    number = targets.shape[1]
    answers = Answers(
        torch.randn(2, number, 2, generator=generator),
        torch.randn(2, number, generator=generator),
        torch.rand(2, number, 4, generator=generator) * 20 + 1,
    )

    losses = detection_losses(answers, targets)

    focal, boxes, centre, near_sum, count = 0.0, 0.0, 0.0, 0.0, 0
    for image in range(2):
        for place in range(number):
            label = int(targets[image, place, 4])
            for kind in range(2):
                p = answers.classes[image, place, kind].sigmoid().item()
                p_t, alpha = (p, 0.25) if kind == label else (1 - p, 0.75)
                focal -= alpha * (1 - p_t) ** 2 * math.log(p_t)
            if label < 0:
                continue
            count += 1
            own, true = answers.edges[image, place].tolist(), targets[image, place, :4].tolist()
            common = math.prod(min(own[k], true[k]) + min(own[k + 2], true[k + 2]) for k in (0, 1))
            hull = math.prod(max(own[k], true[k]) + max(own[k + 2], true[k + 2]) for k in (0, 1))
            union = sum((e[0] + e[2]) * (e[1] + e[3]) for e in (own, true)) - common
            near = centredness(torch.tensor(true)).item()
            boxes += near * (1 - (common / union - (hull - union) / hull))
            near_sum += near
            p = answers.centre[image, place].sigmoid().item()
            centre -= near * math.log(p) + (1 - near) * math.log(1 - p)
    assert count > 0
    expected = {"classes": focal / count, "boxes": boxes / near_sum, "centre": centre / count}
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_an_image_without_boxes_costs_what_is_seen_on_it_only() -> None:
    targets = assign(grid(), torch.tensor([[[0.0, 0, 0, 0, -1]]]))
    edges = torch.ones(1, targets.shape[1], 4, requires_grad=True)
    classes = torch.zeros(1, targets.shape[1], 2, requires_grad=True)

    losses = detection_losses(Answers(classes, torch.zeros(1, targets.shape[1]), edges), targets)
    sum(losses.values()).backward()

    assert losses["boxes"].item() == losses["centre"].item() == 0
    assert losses["classes"].item() > 0
    assert edges.grad is None or edges.grad.abs().sum() == 0


def answers_that_say(targets: Tensor, num_classes: int = 2) -> Tensor:
    """Logits of a network that knows everything."""
    classes = torch.full((*targets.shape[:-1], num_classes), -20.0)
    is_box = targets[..., 4] >= 0
    classes[is_box, targets[..., 4][is_box].long()] = 20.0
    centre = torch.logit(centredness(targets[..., :4]).nan_to_num(0).clamp(1e-4, 1 - 1e-4))
    return torch.cat([classes, centre[..., None], targets[..., :4]], dim=-1)


def test_what_the_places_should_say_decodes_to_the_boxes() -> None:
    boxes = torch.tensor([[[4.0, 4, 28, 20, 0], [30, 20, 60, 44, 1], [2, 26, 14, 40, 0]]])

    logits = answers_that_say(assign(grid(), boxes))[0].numpy()
    found = decode(logits, grid(), SIZE, min_score=0.05, max_overlap=0.5, max_boxes=10)

    assert len(found.boxes) == 3
    assert (np.diff(found.scores) <= 0).all()
    for corners, label in zip(found.boxes, found.classes, strict=True):
        assert any(np.allclose(corners, box[:4].numpy(), atol=1e-3) and label == box[4] for box in boxes[0])


def test_boxes_end_at_the_image_and_at_most_so_many_come_out() -> None:
    logits = torch.randn(grid().places.shape[0], 7, generator=torch.Generator().manual_seed(0))
    logits[:, -4:] = logits[:, -4:].abs() * 40

    found = decode(logits.numpy(), grid(), SIZE, min_score=0.0, max_overlap=0.9, max_boxes=5)

    assert len(found.boxes) == 5
    assert found.boxes.min() >= 0
    assert (found.boxes[:, 2] <= SIZE[0]).all()
    assert (found.boxes[:, 3] <= SIZE[1]).all()
    assert len(decode(logits.numpy(), grid(), SIZE, min_score=1.0, max_overlap=0.9, max_boxes=5).boxes) == 0


def test_boxes_that_overlap_are_dropped_as_one_by_one_with_the_better_first() -> None:
    """A literal non-maximum suppression: the best box stays, those of its class that overlap it go, and so on."""
    logits = torch.randn(grid().places.shape[0], 7, generator=torch.Generator().manual_seed(1))
    logits[:, -4:] = logits[:, -4:].abs() * 20

    found = decode(logits.numpy(), grid(), SIZE, min_score=0.3, max_overlap=0.4, max_boxes=100)

    edges, limit = logits[:, -4:], torch.tensor([*SIZE, *SIZE], dtype=torch.float32)
    places = torch.from_numpy(grid().places)
    corners = torch.cat([places - edges[:, :2], places + edges[:, 2:]], dim=1).clamp(min=0).minimum(limit)
    scores = (logits[:, :2].sigmoid() * logits[:, 2:3].sigmoid()).sqrt()
    expected = []
    for kind in range(2):
        for place in scores[:, kind].argsort(descending=True, stable=True).tolist():
            box, score = corners[place].tolist(), scores[place, kind].item()
            others = [other for other in expected if other[2] == kind]
            if score >= 0.3 and all(overlap(box, other[0]) <= 0.4 for other in others):
                expected.append((box, score, kind))
    expected.sort(key=lambda one: -one[1])
    assert len(found.boxes) == len(expected) > 10
    assert found.classes.tolist() == [kind for _, _, kind in expected]
    np.testing.assert_allclose(found.boxes, [box for box, _, _ in expected], atol=1e-4)
    np.testing.assert_allclose(found.scores, [score for _, score, _ in expected], rtol=1e-6)


def overlap(first: list[float], second: list[float]) -> float:
    """Intersection over union."""
    sides = [max(0.0, min(first[k + 2], second[k + 2]) - max(first[k], second[k])) for k in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return math.prod(sides) / (sum(areas) - math.prod(sides))


def test_a_pyramid_gives_maps_of_one_width_and_one_that_is_coarser() -> None:
    maps = [torch.randn(1, 3, 16, 12), torch.randn(1, 5, 8, 6), torch.randn(1, 7, 4, 3)]

    found = FeaturePyramid((3, 5, 7), 8)(maps)

    assert [tuple(level.shape[1:]) for level in found] == [(8, 16, 12), (8, 8, 6), (8, 4, 3), (8, 2, 2)]


def test_the_places_of_the_network_are_those_of_the_grid() -> None:
    task = Task(resnet.build(1, 2, depth=18, width=8), Options(label_set="x", classes={"a": "any"}, width=8))

    said = task(torch.randn(2, 1, 96, 64))

    assert said.shape == (2, len(task.grid((96, 64)).places), 6)


@pytest.mark.parametrize(
    "wrong", [{"width": 12}, {"classes": {}}, {"classes": {"a": []}}, {"match_overlap": 0}, {"label_set": None}]
)
def test_options_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate({"label_set": "x", "classes": ["a"], **wrong})


def test_networks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="4 feature maps"):
        Task(resnet.build(1, 2, depth=18, width=8), Options(label_set="x", classes={"a": "any"}, num_levels=5))


@pytest.mark.parametrize("seed", range(6))
def test_boxes_move_with_their_image(seed: int) -> None:
    image = torch.zeros(1, 1, 64, 48)
    image[0, 0, 20:33, 10:18] = 1
    box = torch.tensor([[[20.0, 10, 33, 18, 0], [0, 0, 0, 0, -1]]])
    options = Augmentation(flip_prob=0.5, affine_prob=1.0, rotate_degrees=0, scale_range=(0.7, 1.4), **QUIET)

    moved, boxes = augment_boxes(image, box, options, Draws(torch.Generator().manual_seed(seed)))

    places = (moved[0, 0] > 0.5).nonzero()
    expected = [*places.amin(dim=0).tolist(), *(places.amax(dim=0) + 1).tolist()]
    assert boxes[0, 0, :4].tolist() == pytest.approx(expected, abs=0.6)
    assert boxes[0, :, 4].tolist() == [0, -1]


@pytest.mark.parametrize("seed", range(6))
def test_a_turned_box_is_the_upright_one_around_it(seed: int) -> None:
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 24:44, 20:30] = 1
    box = torch.tensor([[[24.0, 20, 44, 30, 0]]])
    options = Augmentation(flip_prob=0.5, affine_prob=1.0, rotate_degrees=30, scale_range=(0.9, 1.1), **QUIET)

    moved, boxes = augment_boxes(image, box, options, Draws(torch.Generator().manual_seed(seed)))

    places = (moved[0, 0] > 0.5).nonzero()
    expected = [*places.amin(dim=0).tolist(), *(places.amax(dim=0) + 1).tolist()]
    assert boxes[0, 0, :4].tolist() == pytest.approx(expected, abs=1.6)


def test_boxes_that_leave_the_image_are_dropped() -> None:
    box = torch.tensor([[[0.0, 0, 4, 4, 0], [28, 20, 36, 28, 1]]])
    options = Augmentation(flip_prob=0.0, affine_prob=1.0, rotate_degrees=0, scale_range=(2.0, 2.0), **QUIET)

    _, boxes = augment_boxes(torch.zeros(1, 1, 64, 48), box, options, Draws(torch.Generator().manual_seed(0)))

    assert boxes[0, :, 4].tolist() == [-1, 1]
    assert boxes[0, 1, :4].tolist() == pytest.approx([24, 16, 40, 32], abs=1e-4)


def test_boxes_lie_on_the_square_and_come_back(tmp_path: Path) -> None:
    cache = finding_cache(tmp_path / "cache", num_patients=1, shape=(40, 24, 1), images=1)
    record = cache.records()[0].model_copy(
        update={"boxes": {"marks": (Box(name="a", lower=(3.5, 1.5, -0.5), upper=(13.5, 9.5, 0.5)),)}}
    )
    item = prepare(cache, cache.records(), Preprocessing(zscore=True, fit=(80, 80)))[0]
    boxes = boxes_of(record, "marks", {"a": ("a",)})

    on_square = to_canvas(boxes, record, item)

    assert boxes.tolist() == [[4.0, 2.0, 14.0, 10.0, 0.0]]
    assert on_square[0].tolist() == pytest.approx([8, 16 + 4, 28, 16 + 20, 0], abs=1e-9)
    np.testing.assert_allclose(from_canvas(on_square, record, item), boxes, atol=1e-9)
    assert stacked([on_square, on_square[:0]])[:, :, 4].tolist() == [[0.0], [-1.0]]


def test_classes_take_boxes_by_name() -> None:
    assert class_of("x", {"a": ("y",), "b": "any"}) == 1
    assert class_of("y", {"a": ("y",), "b": "any"}) == 0
    assert class_of("x", {"a": ("y",)}) is None


def test_strides_may_differ_between_the_axes_of_an_image() -> None:
    backbone = unet.build(1, 2, channels=(4, 8), strides=(2, (2, 1)))

    task = Task(backbone, Options.model_validate({"label_set": "x", "classes": ["a"], "num_levels": 2, "width": 8}))

    assert task.strides == (2, (4, 2), (8, 4))
    assert task(torch.randn(1, 1, 32, 16)).shape == (1, 16 * 8 + 8 * 8 + 4 * 4, 6)
    places = task.grid((32, 16))
    assert places.places[128].tolist() == [2.0, 1.0]
    assert places.sizes[128].tolist() == [[16.0, 16.0], [32.0, 16.0]]
