"""The segmentation loss: its limits by hand, its formula in plain numpy, its gradient downhill."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from medssl_cli.base.classes import IGNORE, Members, WantedClasses, parse_classes
from medssl_cli.heads import MasksHead
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.voxel_losses import dice_loss
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.tasks.segmentation.decode import painted
from medssl_cli.tasks.segmentation.network import SegmentationNetwork as Task
from medssl_cli.tasks.segmentation.network import SegmentationOptions as Options

CLASSES = {1: "ball", 2: "cube"}


class TinyBackbone(Backbone):
    def __init__(self) -> None:
        super().__init__(channels=(4, 6), strides=(1, 2), embedding_levels=(1,))
        self.fine = nn.Conv3d(1, 4, 3, padding=1)
        self.coarse = nn.Conv3d(4, 6, 2, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x).relu()
        return [fine, self.coarse(fine)]


def task(**changes: object) -> Task:
    torch.manual_seed(0)
    return Task(TinyBackbone(), Options.model_validate({"classes": CLASSES, **changes}))


def random_labels(num_classes: int = 3, batch: int = 2) -> Tensor:
    return torch.randint(0, num_classes, (batch, 4, 3, 5), generator=torch.Generator().manual_seed(0))


def one_hot(labels: Tensor, num_classes: int = 3) -> Tensor:
    return F.one_hot(labels, num_classes).movedim(-1, 1).float()


def logits_for(labels: Tensor, *, margin: float, num_classes: int = 3) -> Tensor:
    return margin * one_hot(labels, num_classes)


def test_a_perfect_answer_costs_nothing_and_an_all_wrong_one_costs_one() -> None:
    target = one_hot(random_labels())

    assert dice_loss(target, target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(target.roll(1, dims=1), target).item() == pytest.approx(1, abs=1e-5)


def test_half_of_a_structure_scores_two_thirds() -> None:
    target = torch.zeros(1, 1, 4, 1, 1)
    target[0, 0, :2] = 1
    found = torch.zeros_like(target)
    found[0, 0, :1] = 1

    # Dice = 2 * 1 / (1 + 2).
    assert dice_loss(found, target).item() == pytest.approx(1 / 3, abs=1e-5)


def test_uninformative_probabilities_score_what_the_formula_says() -> None:
    target = torch.zeros(1, 1, 10, 1, 1)
    target[0, 0, :4] = 1

    # 2 * (4 p) / (10 p + 4) with p = 1/2.
    assert dice_loss(torch.full_like(target, 0.5), target).item() == pytest.approx(1 - 4 / 9, abs=1e-5)


def test_an_absent_class_that_is_predicted_nowhere_costs_nothing() -> None:
    labels = random_labels(num_classes=2)
    present, with_absent = one_hot(labels, 2), one_hot(labels, 3)
    wrong = present.roll(1, dims=1)

    assert dice_loss(with_absent, with_absent).item() == pytest.approx(0, abs=1e-6)
    absent_everywhere = F.pad(wrong, (0, 0, 0, 0, 0, 0, 0, 1))
    # Two classes at 1, one at 0.
    assert dice_loss(absent_everywhere, with_absent).item() == pytest.approx(2 / 3, abs=1e-5)


def test_dice_is_pooled_over_the_batch() -> None:
    # One sample is right, the other misses two voxels out of a total of six: 2 * 4 / (4 + 6), not the mean of 1 and 0.
    target = torch.zeros(2, 1, 6, 1, 1)
    target[0, 0, :4] = 1
    target[1, 0, :2] = 1
    found = target.clone()
    found[1] = 0

    assert dice_loss(found, target).item() == pytest.approx(1 - 8 / 10, abs=1e-5)


def literal_loss(logits: np.ndarray, labels: np.ndarray, *, with_background: bool) -> tuple[float, float]:
    """Cross-entropy and Dice loss voxel by voxel, from their definitions."""
    batch, num_classes, *shape = logits.shape
    probabilities = np.zeros(logits.shape)
    cross_entropy = 0.0
    for b in range(batch):
        for place in np.ndindex(*shape):
            column = [math.exp(logits[(b, k, *place)]) for k in range(num_classes)]
            for k in range(num_classes):
                probabilities[(b, k, *place)] = column[k] / sum(column)
            cross_entropy -= math.log(probabilities[(b, labels[(b, *place)], *place)]) / labels.size
    terms = []
    for k in range(0 if with_background else 1, num_classes):
        mask = labels == k
        both = probabilities[:, k][mask].sum()
        terms.append(1 - (2 * both + 1e-5) / (probabilities[:, k].sum() + mask.sum() + 1e-5))
    return cross_entropy, sum(terms) / len(terms)


@pytest.mark.parametrize("with_background", [False, True])
def test_the_loss_is_its_definition_restated(with_background: bool) -> None:
    logits = torch.randn(2, 3, 4, 3, 5, generator=torch.Generator().manual_seed(1)) * 2
    labels = random_labels()

    losses = task(include_background_in_dice=with_background).loss(logits, labels)

    cross_entropy, dice = literal_loss(logits.double().numpy(), labels.numpy(), with_background=with_background)
    assert losses.parts["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-5)
    assert losses.parts["dice"].item() == pytest.approx(dice, rel=1e-5)
    assert losses.total.item() == pytest.approx(cross_entropy + dice, rel=1e-5)


def test_limits_of_the_whole_loss() -> None:
    labels = random_labels()
    model = task()

    perfect = model.loss(logits_for(labels, margin=50), labels)
    blank = model.loss(torch.zeros(2, 3, 4, 3, 5), labels)

    assert perfect.total.item() == pytest.approx(0, abs=1e-5)
    assert blank.parts["cross_entropy"].item() == pytest.approx(math.log(3))
    # p = 1/3 everywhere: 1 - 2 (n_k / 3) / (N / 3 + n_k), averaged over the two structures.
    counts = [int((labels == k).sum()) for k in (1, 2)]
    dice = sum(1 - (2 * n / 3) / (labels.numel() / 3 + n) for n in counts) / 2
    assert blank.parts["dice"].item() == pytest.approx(dice, abs=1e-5)


def test_adding_a_constant_to_all_logits_of_a_voxel_changes_nothing() -> None:
    logits = torch.randn(2, 3, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    labels = random_labels()
    model = task()

    shifted = logits + torch.randn(2, 1, 4, 3, 5, generator=torch.Generator().manual_seed(2)) * 10

    torch.testing.assert_close(model.loss(shifted, labels).total, model.loss(logits, labels).total)


def test_extreme_and_half_precision_logits_give_a_finite_single_precision_loss() -> None:
    labels = random_labels()
    model = task()

    for logits in (logits_for(labels, margin=-1e4), logits_for(labels, margin=3).bfloat16()):
        losses = model.loss(logits, labels)
        assert losses.total.dtype == torch.float32
        assert losses.total.isfinite()


def test_values_beyond_the_classes_are_background() -> None:
    labels = random_labels()
    logits = torch.randn(2, 3, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    foreign = torch.where(labels == 0, 200, labels)

    assert torch.equal(task().loss(logits, foreign).total, task().loss(logits, labels).total)


def test_the_gradient_points_away_from_the_true_class_downhill() -> None:
    labels = random_labels()
    logits = torch.zeros(2, 3, 4, 3, 5, dtype=torch.float64, requires_grad=True)

    task().loss(logits, labels).total.backward()

    assert logits.grad is not None
    true = logits.grad.gather(1, labels[:, None])
    assert (true < 0).all()  # more of the true class lowers the loss, in every voxel
    torch.testing.assert_close(logits.grad.sum(dim=1), torch.zeros_like(labels, dtype=torch.float64), atol=1e-8, rtol=0)


def test_dice_has_the_gradient_of_finite_differences() -> None:
    target = one_hot(random_labels(batch=1)).double()
    probabilities = torch.rand(target.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda p: dice_loss(p, target), probabilities.requires_grad_())


REGIONS = {"whole": ["edge", "core"], "core": ["core"]}


def region_targets(*, with_ignored: bool = False) -> Tensor:
    """Of a map of edge (1) and core (2): [B, 2, X, Y, Z]; some voxels of which nobody judged."""
    labels = random_labels()
    regions = torch.stack([labels > 0, labels == 2], dim=1).to(torch.uint8)
    if with_ignored:
        regions[:, :, 0] = IGNORE
    return regions


def test_regions_have_an_output_each_and_no_background() -> None:
    assert task(classes=REGIONS)(torch.randn(2, 1, 8, 4, 6)).shape == (2, 2, 8, 4, 6)


def test_the_loss_of_regions_is_its_definition_restated() -> None:
    logits = torch.randn(2, 2, 4, 3, 5, generator=torch.Generator().manual_seed(1)).double() * 2
    targets = region_targets(with_ignored=True)

    losses = task(classes=REGIONS).loss(logits, targets)

    cross_entropy, number, dice = 0.0, 0, 0.0
    for region in range(2):
        both = total = 0.0
        for b, x, y, z in np.ndindex(2, 4, 3, 5):
            truth = int(targets[b, region, x, y, z])
            if truth == IGNORE:
                continue
            p = 1 / (1 + math.exp(-float(logits[b, region, x, y, z])))
            cross_entropy -= math.log(p if truth else 1 - p)
            number, both, total = number + 1, both + p * truth, total + p + truth
        dice += (1 - (2 * both + 1e-5) / (total + 1e-5)) / 2
    assert losses.parts["binary_cross_entropy"].item() == pytest.approx(cross_entropy / number, rel=1e-5)
    assert losses.parts["dice"].item() == pytest.approx(dice, rel=1e-5)
    assert losses.total.item() == pytest.approx(cross_entropy / number + dice, rel=1e-5)


def test_limits_of_the_loss_of_regions() -> None:
    targets, model = region_targets(), task(classes=REGIONS)

    perfect = model.loss((targets.float() - 0.5) * 100, targets)
    blank = model.loss(torch.zeros(targets.shape), targets)

    assert perfect.total.item() == pytest.approx(0, abs=1e-5)
    assert blank.parts["binary_cross_entropy"].item() == pytest.approx(math.log(2))


def test_what_nobody_judged_has_no_gradient_in_any_region() -> None:
    targets = region_targets(with_ignored=True)
    logits = torch.zeros(targets.shape, requires_grad=True)

    task(classes=REGIONS).loss(logits, targets).total.backward()

    assert logits.grad is not None
    assert (logits.grad[:, :, 0] == 0).all()
    assert ((logits.grad < 0) == (targets == 1))[:, :, 1:].all()


def test_what_the_outputs_mean_is_plain_data() -> None:
    exclusive, regions = (head_of(parse_classes(classes)) for classes in ({2: "b", 1: "a"}, REGIONS))

    assert (exclusive.activation, exclusive.words, exclusive.are_regions) == ("softmax", ("a", "b"), False)
    assert (regions.activation, regions.words, regions.are_regions) == ("sigmoid", ("whole", "core"), True)
    outputs = [head.outputs(Preprocessing(zscore=True))[0].sizes[1] for head in (exclusive, regions)]
    assert outputs == [3, 2]  # background is an output of its own where classes exclude each other
    assert MasksHead.model_validate_json(regions.model_dump_json()) == regions


def head_of(classes: dict[str, Members]) -> MasksHead:
    wanted = WantedClasses(classes)
    return MasksHead(
        activation=wanted.activation,
        classes=wanted.names,
        label_classes=classes,
        tile_size=(8, 8, 8),
        overlap=0.5,
        nsd_tolerance_mm=2.0,
    )


def test_where_regions_overlap_the_smaller_one_is_seen() -> None:
    masks = np.zeros((2, 4, 1, 1), np.uint8)
    masks[0, 1:], masks[1, 2] = 1, 1

    assert painted(masks, masks).ravel().tolist() == [0, 1, 2, 1]
    assert painted(masks[::-1], masks[::-1]).ravel().tolist() == [0, 2, 1, 2]


def test_logits_have_a_channel_per_class_and_one_for_background() -> None:
    images = torch.randn(2, 1, 8, 4, 6)

    assert task()(images).shape == (2, 3, 8, 4, 6)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({0: "background", 1: "a"}, "0 is background"),
        ({1: "a", 2: "a"}, "names must differ"),
        ({}, "at least 1"),
    ],
)
def test_background_is_no_class_and_classes_have_different_names(classes: dict[int, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Options(classes=classes)
