"""Boxes in volumes: which places answer for them, what wrong answers cost, crops with boxes, and tiles put together."""

import json
import math
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from medssl_cli.cache.items import Box, ItemRecord
from medssl_cli.data.augmentation import Draws, augment_boxes
from medssl_cli.data.box_crops import box_crop_start, boxes_in_crop
from medssl_cli.data.boxes import IGNORED, boxes_of, diameters_of
from medssl_cli.heads import BoxesHead, OperatingPoint
from medssl_cli.imaging.volume import Volume
from medssl_cli.nn.backbones import plainconv, resnet, unet
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe_sections import Augmentation
from medssl_cli.tasks.detection.assignment import ANCHOR_SIZE, NUM_NEAREST, assign
from medssl_cli.tasks.detection.decode import Grid, answer, decode
from medssl_cli.tasks.detection.image_boxes import ImageBoxes
from medssl_cli.tasks.detection.network import Answers, detection_losses, edge_overlap
from medssl_cli.tasks.detection.network import DetectionNetwork as Task
from medssl_cli.tasks.detection.network import DetectionOptions as Options
from medssl_cli.tasks.detection.scores import evaluate_boxes, paired_figures

SIZE = (24, 16, 12)
STRIDES = ((2, 2, 1), (4, 4, 2))
QUIET = {"intensity_scale": 0.0, "intensity_shift": 0.0}


def random_boxes(seed: int, number: int = 3) -> Tensor:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, [16, 9, 6], (2, number, 3))
    high = low + rng.uniform(0.8, 7, (2, number, 3))
    classes = rng.integers(-1, 2, (2, number, 1))
    return torch.tensor(np.concatenate([low, high, classes], axis=-1), dtype=torch.float32)


def volume_overlap(first: list[float], second: list[float]) -> float:
    """Intersection over union of two boxes."""
    sides = [max(0.0, min(first[k + 3], second[k + 3]) - max(first[k], second[k])) for k in range(3)]
    volumes = [math.prod(box[k + 3] - box[k] for k in range(3)) for box in (first, second)]
    return math.prod(sides) / (sum(volumes) - math.prod(sides))


def literal_atss(boxes: list[list[float]]) -> list[tuple[int, list[float]]]:
    """Algorithm 1 of the paper with the changes that `assignment` names, one place after the other."""
    places = [
        (level, stride, [(i + 0.5) * s for i, s in zip(cell, stride, strict=True)])
        for level, stride in enumerate(STRIDES)
        for cell in product(*(range(-(-size // step)) for size, step in zip(SIZE, stride, strict=True)))
    ]
    anchors = [
        [p - ANCHOR_SIZE * s / 2 for p, s in zip(place, stride, strict=True)]
        + [p + ANCHOR_SIZE * s / 2 for p, s in zip(place, stride, strict=True)]
        for _, stride, place in places
    ]
    answers: list[tuple[float, int, list[float]]] = [(-1.0, -1, [])] * len(places)
    for *corners, label in boxes:
        if label < 0:
            continue
        centre = [(corners[k] + corners[k + 3]) / 2 for k in range(3)]
        away = [sum(((p - c) / s) ** 2 for p, c, s in zip(place, centre, stride, strict=True))
                for _, stride, place in places]  # fmt: skip
        near: list[int] = []
        for level in range(len(STRIDES)):
            own = [n for n, (of, _, _) in enumerate(places) if of == level]
            near += sorted(own, key=lambda n: away[n])[:NUM_NEAREST]
        overlaps = [volume_overlap(anchors[n], corners) for n in near]
        limit = min(float(np.mean(overlaps) + np.std(overlaps, ddof=1)), max(overlaps))
        for n, overlap in zip(near, overlaps, strict=True):
            if overlap >= limit - 1e-7 and overlap > answers[n][0]:
                place = places[n][2]
                edges = [place[k] - corners[k] for k in range(3)] + [corners[k + 3] - place[k] for k in range(3)]
                answers[n] = (overlap, int(label), edges)
    return [(label, edges) for _, label, edges in answers]


@pytest.mark.parametrize("seed", range(4))
def test_near_places_whose_anchors_overlap_a_box_best_answer_for_it(seed: int) -> None:
    boxes = random_boxes(seed)

    targets = assign(Grid.of(SIZE, STRIDES), boxes, "overlap")

    for image in range(2):
        expected = literal_atss(boxes[image].tolist())
        assert targets[image, :, 6].tolist() == [label for label, _ in expected]
        for place, (label, edges) in enumerate(expected):
            if label >= 0:
                assert targets[image, place, :6].tolist() == pytest.approx(edges, abs=1e-4)


@pytest.mark.parametrize("side", [0.3, 1.0, 3.0, 11.0])
def test_every_box_has_a_place_that_answers_for_it(side: float) -> None:
    for centre in ((12.0, 8.0, 6.0), (1.3, 14.9, 0.4), (23.0, 3.1, 11.5)):
        box = torch.tensor([[[*(c - side / 2 for c in centre), *(c + side / 2 for c in centre), 0.0]]])

        assert (assign(Grid.of(SIZE, STRIDES), box, "overlap")[..., 6] == 0).any()


def test_nothing_is_learnt_in_boxes_that_count_for_nothing() -> None:
    grid = Grid.of(SIZE, STRIDES)
    boxes = torch.tensor([[[0.0, 0, 0, 9, 9, 9, IGNORED], [10, 8, 4, 16, 14, 10, 1]]])

    targets = assign(grid, boxes, "overlap")

    inside = np.all((grid.places > 0) & (grid.places < 9), axis=1)
    assert (targets[0, torch.from_numpy(inside), 6] == IGNORED).all()
    assert set(targets[0, torch.from_numpy(~inside), 6].tolist()) == {-1.0, 1.0}
    classes = torch.zeros(1, len(grid.places), 2, requires_grad=True)
    answers = Answers(classes, torch.zeros(1, len(grid.places)), torch.ones(1, len(grid.places), 6))
    detection_losses(answers, targets, "overlap")["classes"].backward()
    assert classes.grad is not None
    assert (classes.grad[0, inside] == 0).all()
    assert (classes.grad[0, ~inside] != 0).all()


def test_losses_of_volumes_one_place_after_the_other() -> None:
    targets = assign(Grid.of(SIZE, STRIDES), random_boxes(1), "overlap")
    generator = torch.Generator().manual_seed(0)
    number = targets.shape[1]
    answers = Answers(
        torch.randn(2, number, 2, generator=generator),
        torch.randn(2, number, generator=generator),
        torch.rand(2, number, 6, generator=generator) * 6 + 1,
    )

    losses = detection_losses(answers, targets, "overlap")

    boxes, centre, count = 0.0, 0.0, 0
    for image, place in product(range(2), range(number)):
        if targets[image, place, 6] < 0:
            continue
        count += 1
        own, true = answers.edges[image, place].tolist(), targets[image, place, :6].tolist()
        found, there = ([-edges[0], -edges[1], -edges[2], *edges[3:]] for edges in (own, true))
        overlap = volume_overlap(found, there)
        hull = math.prod(max(found[k + 3], there[k + 3]) - min(found[k], there[k]) for k in range(3))
        volumes = [math.prod(box[k + 3] - box[k] for k in range(3)) for box in (found, there)]
        union = sum(volumes) / (1 + overlap)
        boxes += 1 - (overlap - (hull - union) / hull)
        p = answers.centre[image, place].sigmoid().item()
        centre -= overlap * math.log(p) + (1 - overlap) * math.log(1 - p)
        assert edge_overlap(torch.tensor(own), torch.tensor(true)).item() == pytest.approx(overlap, abs=1e-5)
    assert count > 4
    found_losses = {name: losses[name].item() for name in ("boxes", "centre")}
    assert found_losses == pytest.approx({"boxes": boxes / count, "centre": centre / count}, rel=1e-4)


def answers_that_say(targets: Tensor) -> Tensor:
    """Logits of a network that knows everything, of one class."""
    sure = torch.where(targets[..., -1:] >= 0, 20.0, -20.0)
    return torch.cat([sure, sure, targets[..., :-1]], dim=-1)


def test_what_the_places_should_say_decodes_to_the_boxes() -> None:
    boxes = torch.tensor([[[2.0, 2, 2, 8, 7, 5, 0], [12, 6, 3, 22, 15, 11, 0]]])
    grid = Grid.of(SIZE, STRIDES)

    said = answers_that_say(assign(grid, boxes, "overlap"))[0].numpy()
    found = decode(said, grid, SIZE, min_score=0.1, max_overlap=0.3, max_boxes=9)

    assert sorted(found.boxes.round(3).tolist()) == sorted(boxes[0, :, :6].tolist())


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        (resnet.build(1, 3, depth=18, width=8, norm="group"), (16, 32, 64)),
        (unet.build(1, 3, channels=(4, 8), strides=(2, (2, 2, 1))), (2, (4, 4, 2), (8, 8, 4))),
        (plainconv.build(1, 3, channels=(4, 8), strides=(1, (2, 2, 1)), num_convs=(1, 1)), (1, (2, 2, 1), (4, 4, 2))),
    ],
)
def test_encoders_of_volumes_with_strides_per_axis(backbone: torch.nn.Module, strides: tuple[object, ...]) -> None:
    task = Task(backbone, Options.model_validate({"label_set": "x", "classes": ["a"], "width": 16, "num_levels": 2}))

    said = task(torch.randn(1, 1, 64, 32, 16))

    assert task.strides == strides
    assert said.shape == (1, len(task.grid((64, 32, 16)).places), 8)
    edges = said[0, :, 2:]
    assert (edges[:, :3] + edges[:, 3:] > 0).all()  # sides have a length, wherever the centre is


def test_names_are_of_a_class_or_ignored() -> None:
    with pytest.raises(ValidationError, match="'a' are of 'a' and ignored"):
        Options.model_validate({"label_set": "x", "classes": ["a"], "ignore": ["a"]})


# Crops


def test_crops_show_a_box_whole_and_lie_in_the_volume() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[10.3, 20.2, 5.5, 16.1, 25.0, 9.9, 0.0], [1, 1, 1, 3, 3, 3, IGNORED]])
    for _ in range(50):
        start = np.array(box_crop_start((40, 30, 20), boxes, (16, 12, 8), rng, box_prob=1))
        end = np.add(start, (16, 12, 8))
        assert (start >= 0).all()
        assert (end <= (40, 30, 20)).all()
        assert (start <= boxes[0, :3]).all()
        assert (end >= boxes[0, 3:6]).all()


def test_crops_of_small_volumes_and_large_boxes() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[0.0, 0, 0, 30, 30, 4, 0]])
    starts = [box_crop_start((30, 30, 4), boxes, (8, 30, 8), rng, box_prob=1) for _ in range(30)]

    assert {start[1:] for start in starts} == {(0, -2)}
    assert all(start[0] <= 15 <= start[0] + 8 for start in starts)
    assert len({box_crop_start((30, 30, 4), boxes[:0], (8, 8, 4), rng, box_prob=1) for _ in range(30)}) > 5


def test_boxes_of_a_crop_are_cut_and_those_mostly_outside_teach_nothing() -> None:
    boxes = np.array([[2.0, 2, 2, 6, 6, 6, 1], [7, 2, 2, 11, 6, 6, 0], [9, 2, 2, 13, 6, 6, 0], [30, 2, 2, 34, 6, 6, 0]])

    found = boxes_in_crop(boxes, (0, 1, -1), (10, 10, 10))

    assert found.tolist() == [
        [2, 1, 3, 6, 5, 7, 1],
        [7, 1, 3, 10, 5, 7, 0],
        [9, 1, 3, 10, 5, 7, IGNORED],
    ]


@pytest.mark.parametrize("seed", range(6))
def test_boxes_move_with_their_volume(seed: int) -> None:
    image = torch.zeros(1, 1, 40, 30, 20)
    image[0, 0, 14:21, 10:18, 6:12] = 1
    box = torch.tensor([[[14.0, 10, 6, 21, 18, 12, 0], [0, 0, 0, 0, 0, 0, -1], [1, 1, 1, 2, 2, 2, IGNORED]]])
    options = Augmentation(flip_prob=0.5, affine_prob=1.0, rotate_degrees=0, scale_range=(0.8, 1.3), **QUIET)

    moved, boxes = augment_boxes(image, box, options, Draws(torch.Generator().manual_seed(seed)), left=IGNORED)

    places = (moved[0, 0] > 0.5).nonzero()
    expected = [*places.amin(dim=0).tolist(), *(places.amax(dim=0) + 1).tolist()]
    assert boxes[0, 0, :6].tolist() == pytest.approx(expected, abs=0.7)
    assert boxes[0, :, 6].tolist() == [0, -1, IGNORED]


# Tiles


def head(tile: tuple[int, int, int], overlap: float) -> BoxesHead:
    return BoxesHead(
        names=("nodule",),
        label_classes={"nodule": "any"},
        operating_points={"nodule": OperatingPoint(threshold=0.5, rule="fixed")},
        strides=((2, 2, 1), (4, 4, 2)),
        min_score=0.1,
        max_overlap=0.2,
        max_boxes=1000,
        match_overlap=0.1,
        tile_size=tile,
        overlap=overlap,
    )


def oracle(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """A network that knows the boxes of a tile, as far as it sees them: voxels of a box have its number."""
    numbers = np.round(tiles[0, 0]).astype(int)
    rows = []
    for number in np.unique(numbers[numbers > 0]):
        places = np.argwhere(numbers == number)
        rows.append([*places.min(axis=0), *(places.max(axis=0) + 1), 0])
    boxes = torch.tensor(np.array(rows or [[0, 0, 0, 0, 0, 0, -1]]), dtype=torch.float32)[None]
    return answers_that_say(assign(Grid.of(numbers.shape, ((2, 2, 1), (4, 4, 2))), boxes, "overlap")).numpy()


@pytest.mark.parametrize("turn", [np.diag([1.0, 1, 1]), np.diag([-1.0, -1, 1]), np.eye(3)[[2, 0, 1]]])
@pytest.mark.parametrize("shape", [(33, 26, 18), (20, 14, 9)])
def test_every_box_of_a_volume_is_found_once_wherever_tiles_end(turn: np.ndarray, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    voxels = np.zeros(shape, dtype=np.int16)
    corners = []
    for start in product(*(range(2, size - 6, 8) for size in shape)):
        low = np.array(start) + rng.integers(0, 2, 3)
        high = low + rng.integers(3, 5, 3)
        corners.append([*low, *high])
        voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = len(corners)
    affine = np.eye(4)
    affine[:3, :3] = turn
    thousandths = Volume(voxels.astype(np.float32)[None] / 1000, affine, "CT", "HU")
    calls: list[tuple[int, int]] = []

    found = answer(
        lambda tiles: oracle(tiles * np.float32(1000)),
        thousandths,
        preprocessing=Preprocessing(window_hu=(0, 1)),
        head=head((16, 16, 12), 0.5),
        progress=lambda done, total: calls.append((done, total)),
    )

    assert sorted(found.boxes.round(4).tolist()) == sorted(corners)
    assert calls[-1] == (len(calls), len(calls))


# Truth


def test_boxes_of_few_readers_or_ignored_names_count_for_nothing() -> None:
    def box(name: str, readers: int | None, diameter: float | None = None) -> Box:
        return Box(name=name, lower=(0, 0, 0), upper=(2, 4, 6), num_readers=readers, diameter_mm=diameter)

    record = SimpleNamespace(
        boxes={"lidc": (box("nodule", 4, 5.0), box("nodule", 2), box("small", 4), box("other", 4), box("nodule", None))}
    )
    classes: dict[str, tuple[str, ...]] = {"nodule": ("nodule",)}
    wishes: dict[str, Any] = {"ignore": ("small",), "min_readers": 3}

    rows = boxes_of(cast("ItemRecord", record), "lidc", classes, dims=3, **wishes)

    assert rows[:, 6].tolist() == [0, IGNORED, IGNORED, 0]
    assert rows[0, :6].tolist() == [0.5, 0.5, 0.5, 2.5, 4.5, 6.5]
    assert diameters_of(cast("ItemRecord", record), "lidc", classes, **wishes)[0] == 5.0
    point = SimpleNamespace(boxes={"lidc": (Box(name="nodule", lower=(1, 2, 3), upper=(1, 2, 3)),)})
    assert boxes_of(cast("ItemRecord", point), "lidc", classes, dims=3)[:, 6].tolist() == [IGNORED]


def test_models_of_volumes_are_compared_without_what_counts_for_nothing() -> None:
    def boxes(corners: list[list[float]], classes: list[int], scores: list[float]) -> ImageBoxes:
        return ImageBoxes(np.array(corners).reshape(-1, 6), np.array(classes, dtype=np.int64), np.array(scores))

    records = [
        cast("ItemRecord", SimpleNamespace(patient_key=f"p{number}", item_id=f"i{number}", shape=(20, 20, 20),
                                           affine_array=np.eye(4)))
        for number in range(3)
    ]  # fmt: skip
    place, other = [2.0, 2, 2, 6, 6, 6], [10.0, 10, 10, 14, 14, 14]
    truth = [boxes([place, other], [0, int(IGNORED)], [1, 1]), boxes([place], [0], [1]), boxes([], [], [])]
    good = [boxes([place, other], [0, 0], [0.9, 0.95]), boxes([place], [0], [0.8]), boxes([], [], [])]
    poor = [boxes([other], [0], [0.9]), boxes([], [], []), boxes([place], [0], [0.8])]
    documents = [evaluate_boxes(found, truth, records, ["nodule"], min_overlap=0.5, about={}) for found in (good, poor)]

    documents = [json.loads(json.dumps(document)) for document in documents]
    figures = {(figure.metric, figure.structure): figure for figure in paired_figures(documents)}
    mean, hits = figures["AP", "mean of classes"], figures["CPM", "nodule"]
    old = [{**document, "cases": [{**case} for case in document["cases"]]} for document in documents]
    for case in old[1]["cases"]:
        del case["points"]

    assert len(figures) == 4
    assert [hits.value(n) for n in (0, 1)] == [
        document["classes"]["nodule"]["froc"]["competition_metric"]["mean"] for document in documents
    ]
    assert hits.difference(0, 1).mean == hits.value(0) - hits.value(1) > 0
    assert hits.p_value([0], [0]) == 1  # nothing changes where a model is exchanged for itself
    assert 0 < hits.p_value([0], [1]) <= 1
    assert {figure.metric for figure in paired_figures(old)} == {"AP"}  # as they were written before
    assert [documents[n]["mean_average_precision"]["mean"] for n in (0, 1)] == [1.0, 0.0]
    assert [float(figure(np.ones((1, 3)))[0]) for figure in mean.figures] == [1.0, 0.0]
    assert documents[0]["classes"]["nodule"]["froc"]["competition_metric"]["mean"] == 1.0
    assert documents[0]["cases"][0]["ignored"] == [other]


def test_a_head_tells_how_many_places_there_are_and_what_they_take() -> None:
    rule = Preprocessing(window_hu=(0, 1))
    own = head((24, 16, 12), 0.5)

    number = len(Grid.of((24, 16, 12), own.strides).places)
    assert own.num_places(rule) == number
    assert own.outputs(rule)[0].sizes == ("batch", number, 1 + 1 + 6)
    assert own.decoding_bytes(rule) > 4 * number * (1 + 1 + 6)
    with pytest.raises(ValidationError, match="strides are of 2 axes"):
        BoxesHead.model_validate({**own.model_dump(), "tile_size": None})


def test_boxes_make_quarter_turns_with_their_volume() -> None:
    image = torch.zeros(8, 1, 10, 10, 6)
    image[:, :, 1:4, 2:7, 1:3] = 1
    box = torch.tensor([[[1.0, 2.0, 1.0, 4.0, 7.0, 3.0, 0.0]]]).repeat(8, 1, 1)
    options = Augmentation(flip_prob=0.5, quarter_turn_prob=0.9, intensity_scale=0, intensity_shift=0)

    moved, boxes = augment_boxes(image, box, options, Draws(torch.Generator().manual_seed(0)))

    for volume, found in zip(moved[:, 0], boxes[:, 0], strict=True):
        places = (volume > 0.5).nonzero()
        torch.testing.assert_close(found[:3], places.amin(dim=0).float())
        torch.testing.assert_close(found[3:6], places.amax(dim=0).float() + 1)
