"""Learning from unlabelled images, part by part: boxes, mixtures, pseudo-labels, places, and the watch over them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medssl_cli.base.classes import IGNORE
from medssl_cli.base.errors import UsageError
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.relative_places import places_of_classes, points_at
from medssl_cli.engine.unlabelled_finetuning import STEPS_TO_COLLAPSE, PseudoLabelWatch
from medssl_cli.nn.pseudo_labels import entropy, largest_piece, pseudo_labels
from medssl_cli.nn.voxel_losses import region_losses, voxel_losses
from medssl_cli.tasks import TaskLosses
from medssl_cli.unlabelled import AnswerMeaning, Networks, StepImages, agreement, class_shares
from medssl_cli.unlabelled.bcp import CopyPaste, CopyPasteOptions, only, paste_boxes, takes_the_rest
from medssl_cli.unlabelled.mean_teacher import MeanTeacher, MeanTeacherOptions, consistency
from medssl_cli.unlabelled.uamt import UncertaintyAwareTeacher, UncertaintyOptions
from tests.two_processes import results_of_each

ORGANS = AnswerMeaning("softmax", ("heart", "lung"), 3)
REGIONS = AnswerMeaning("sigmoid", ("whole", "core"), 3)


def draws(seed: int = 0, rank: int = 0, num_processes: int = 1) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), rank, num_processes)


class Watched:
    """Two linear networks of three outputs that remember what they were shown."""

    def __init__(self, *, are_regions: bool = False) -> None:
        self.seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
        outputs, self._are_regions = (2 if are_regions else 3), are_regions
        random = torch.Generator().manual_seed(1)
        self.weights = {
            who: torch.randn(outputs, 1, generator=random).requires_grad_() for who in ("student", "teacher")
        }
        self.networks = Networks(lambda images: self._answer("student", images), self._teach, self._judge)

    def _teach(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self._answer("teacher", images)

    def _answer(self, who: str, images: Tensor) -> Tensor:
        self.seen[who].append(images)
        return torch.einsum("kc,bcxyz->bkxyz", self.weights[who], images)

    def _judge(self, answers: Tensor, targets: Tensor) -> TaskLosses:
        parts = region_losses(answers, targets) if self._are_regions else voxel_losses(answers, targets)
        return TaskLosses(torch.stack(list(parts.values())).sum(), parts)


def shown(*, seed: int = 0, rank: int = 0, num_processes: int = 1, are_regions: bool = False) -> StepImages:
    """Four labelled and four unlabelled images; of several processes each sees its share."""
    random = np.random.default_rng(seed)
    images, others = (torch.from_numpy(random.normal(size=(4, 1, 6, 5, 4)).astype(np.float32)) for _ in range(2))
    targets = torch.from_numpy(random.integers(0, 3, (4, 6, 5, 4)))
    if are_regions:
        targets = torch.stack([targets > 0, targets > 1], dim=1).to(torch.uint8)
    own = slice(rank * 4 // num_processes, (rank + 1) * 4 // num_processes)
    return StepImages((images[own],), targets[own], (others[own],), draws(seed, rank, num_processes))


METHODS: dict[str, Any] = {
    "mean teacher": MeanTeacher(MeanTeacherOptions(ramp=0.0), ORGANS),
    "divergence": MeanTeacher(MeanTeacherOptions(ramp=0.0, distance="kl"), ORGANS),
    "uncertainty": UncertaintyAwareTeacher(UncertaintyOptions(ramp=0.0, passes=2), ORGANS),
    "copy and paste": CopyPaste(CopyPasteOptions(first_stage=0.5, shows_whole=False), ORGANS),
    "copy and paste, whole": CopyPaste(CopyPasteOptions(first_stage=0.5), ORGANS),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@each_method
def test_the_teacher_gets_no_gradient_and_the_student_does(method: Any) -> None:
    watched = Watched()

    learnt = method.loss(watched.networks, shown(), 0.9, is_off=False)
    learnt.total.backward()

    assert watched.weights["teacher"].grad is None
    gradient = watched.weights["student"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert learnt.total.isfinite()
    assert learnt.pseudo_shares is not None
    assert learnt.pseudo_shares.shape == (2,)


@each_method
def test_a_teacher_that_has_collapsed_teaches_nothing(method: Any) -> None:
    """What is left is the loss of labels: whatever the teacher says, it stays the same."""
    totals = []
    for factor in (1.0, -3.0):
        watched = Watched()
        watched.weights["teacher"] = watched.weights["teacher"] * factor
        totals.append(float(method.loss(watched.networks, shown(), 0.9, is_off=True).total.detach()))

    assert totals[0] == totals[1]


@pytest.mark.parametrize("method", [MeanTeacher(MeanTeacherOptions(), REGIONS), CopyPaste(CopyPasteOptions(), REGIONS)])
def test_regions_that_overlap_are_learnt_too(method: Any) -> None:
    watched = Watched(are_regions=True)

    learnt = method.loss(watched.networks, shown(are_regions=True), 0.9, is_off=False)
    learnt.total.backward()

    gradient = watched.weights["student"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_the_noise_of_the_teacher_does_not_reach_the_student() -> None:
    watched, step = Watched(), shown()

    MeanTeacher(MeanTeacherOptions(teacher_noise=0.1), ORGANS).loss(watched.networks, step, 1.0, is_off=False)

    [together], [noisy] = watched.seen["student"], watched.seen["teacher"]
    assert torch.equal(together, torch.cat([step.labelled[0], step.unlabelled[0]]))
    noise = noisy - step.unlabelled[0]
    assert 0.05 < noise.std() < 0.15
    assert noise.abs().max() <= 0.2 + 1e-6


def test_equal_networks_without_noise_have_nothing_to_learn_from_each_other() -> None:
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    for activation in ("softmax", "sigmoid"):
        for distance in ("mse", "kl"):
            assert abs(float(consistency(logits, logits, activation, distance))) < 1e-6  # type: ignore[arg-type]


def test_the_weight_of_consistency_rises_and_stays() -> None:
    method = MeanTeacher(MeanTeacherOptions(weight=2.0, ramp=0.4), ORGANS)

    weights = [
        float(method.loss(Watched().networks, shown(), progress, is_off=False).parts["unlabelled/weight"])
        for progress in (0.0, 0.2, 0.4, 1.0)
    ]

    assert weights == pytest.approx([2 * 0.006737947, 2 * 0.2865048, 2.0, 2.0])
    assert [method.is_full(progress) for progress in (0.39, 0.4)] == [False, True]


def test_boxes_have_two_thirds_of_every_side_and_reach_every_place() -> None:
    boxes = paste_boxes((6, 7, 1), 500, 2 / 3, draws())

    assert boxes.shape == (500, 6, 7, 1)
    assert set(boxes.sum(dim=(1, 2, 3)).tolist()) == {4 * 4 * 1}
    starts = {tuple(box.nonzero()[0, :2].tolist()) for box in boxes}
    assert starts == {(x, y) for x in range(3) for y in range(4)}


def test_half_of_the_mixtures_take_the_box_and_half_the_rest() -> None:
    found = [takes_the_rest(4, draws(seed)) for seed in range(20)]

    assert {tuple(each.tolist()) for each in found} == {(False, True) * 2, (True, False) * 2}


def test_the_first_stage_mixes_labelled_images_only() -> None:
    watched, step = Watched(), shown()

    learnt = METHODS["copy and paste"].loss(watched.networks, step, 0.4, is_off=False)

    [mixtures], [images] = watched.seen["student"], step.labelled
    follows = images.roll(-1, dims=0)
    assert watched.seen["teacher"] == []
    assert learnt.pseudo_shares is None
    assert ((mixtures == images) | (mixtures == follows)).all()
    assert (mixtures == follows).float().mean() == pytest.approx(4 * 3 * 2 / 120)


def test_the_second_stage_shows_each_pair_once_and_labels_every_voxel_by_its_origin() -> None:
    watched, step = Watched(), shown()

    METHODS["copy and paste"].loss(watched.networks, step, 0.6, is_off=False)

    [mixtures] = watched.seen["student"]
    [images], [others] = step.labelled, step.unlabelled
    assert torch.equal(watched.seen["teacher"][0], others)
    is_true = mixtures == images
    assert torch.equal(mixtures, torch.where(is_true, images, others))
    assert sorted(is_true.float().mean(dim=(1, 2, 3, 4)).tolist()) == pytest.approx([0.2, 0.2, 0.8, 0.8])


def test_with_true_labels_for_pseudo_labels_copy_paste_is_supervised_on_mixtures() -> None:
    """The teacher says of each voxel its own class, one-hot and sure; the labels are the same function of images."""
    step = shown()
    step = StepImages(step.labelled, (step.labelled[0][:, 0] > 0).long(), step.unlabelled, step.draws)
    watched = Watched()

    def sure(images: Tensor) -> Tensor:
        return torch.cat([-images, images, torch.full_like(images, -1e3)], dim=1) * 50

    networks = Networks(watched.networks.student, sure, watched.networks.judge)
    options = CopyPasteOptions(first_stage=0.0, pseudo_weight=1.0, one_piece="none", shows_whole=False)
    learnt = CopyPaste(options, ORGANS).loss(networks, step, 0.5, is_off=False)

    [mixtures] = watched.seen["student"]
    answers, labels = watched.networks.student(mixtures), (mixtures[:, 0] > 0).long()
    is_true = (mixtures == step.labelled[0])[:, 0]
    expected = sum(watched.networks.judge(answers, only(labels, part)).total for part in (is_true, ~is_true))
    assert torch.allclose(learnt.total, torch.as_tensor(expected), atol=1e-6)


@pytest.mark.parametrize("progress", [0.4, 0.9])
def test_labelled_images_may_be_shown_whole_too(progress: float) -> None:
    """The loss is that of mixtures alone plus the task's own; the networks of this test treat every image by itself."""
    totals = {}
    for name in ("copy and paste", "copy and paste, whole"):
        watched = Watched()
        totals[name] = METHODS[name].loss(watched.networks, shown(), progress, is_off=False)
    step = shown()
    whole = watched.networks.judge(watched.networks.student(*step.labelled), step.targets)

    assert torch.equal(watched.seen["student"][0][:4], step.labelled[0])
    expected = whole.total + totals["copy and paste"].total
    assert torch.allclose(totals["copy and paste, whole"].total, expected, atol=1e-5)


def _loss_of_each(rank: int) -> dict[str, Tensor]:
    found = {}
    for name, method in METHODS.items():
        for progress in (0.4, 0.9):
            watched = Watched()
            learnt = method.loss(watched.networks, shown(rank=rank, num_processes=2), progress, is_off=False)
            learnt.total.backward()
            gradient = watched.weights["student"].grad
            assert gradient is not None
            found[f"{name} {progress}"] = gradient
    return found


def test_two_processes_learn_what_one_learns(tmp_path: Any) -> None:
    first, second = results_of_each(tmp_path, _loss_of_each)

    for name, method in METHODS.items():
        for progress in (0.4, 0.9):
            watched = Watched()
            method.loss(watched.networks, shown(), progress, is_off=False).total.backward()
            mean = (first[f"{name} {progress}"] + second[f"{name} {progress}"]) / 2
            assert torch.allclose(mean, watched.weights["student"].grad, atol=1e-6), (name, progress)  # type: ignore[arg-type]


def test_only_the_largest_piece_counts_and_an_absent_class_stays_absent() -> None:
    mask = np.zeros((6, 6, 2), dtype=bool)
    mask[0:2, 0:2, 0] = mask[4:6, 3:6, 0] = mask[0, 0, 1] = True

    assert largest_piece(mask).sum() == 6  # the square of 4 touches the voxel behind it: 5 against 6
    assert largest_piece(mask, 2)[..., 0].sum() == 6
    assert largest_piece(mask, 2)[..., 1].sum() == 1
    assert largest_piece(np.zeros((3, 3, 3), dtype=bool)).sum() == 0


def test_pieces_touch_at_corners() -> None:
    mask = np.zeros((4, 4, 1), dtype=bool)
    mask[0, 0] = mask[1, 1] = mask[3, 3] = True

    assert largest_piece(mask, 2)[..., 0].nonzero()[0].tolist() == [0, 1]


def test_pseudo_labels_of_classes_and_regions() -> None:
    logits = torch.zeros(1, 3, 4, 4, 1)
    logits[0, 1, 0, 0] = logits[0, 1, 3, 2:] = logits[0, 2, 1, 1] = 4.0
    logits[0, 0, 2] = 0.1

    labels = pseudo_labels(logits, "softmax", largest_of=frozenset({1}), min_confidence=0.5, spatial_dims=2)

    assert labels[0, 3, 2:, 0].tolist() == [1, 1]
    assert labels[0, 1, 1, 0] == 2
    assert labels[0, 2, 0, 0] == IGNORE  # nearly equal scores: below one half
    assert labels[0, 0, 0, 0] == 0  # the smaller piece of class 1, and the teacher is sure of its answer
    regions = pseudo_labels(logits, "sigmoid", largest_of=frozenset({2}))
    assert regions.dtype == torch.uint8
    assert regions[0, 1].sum() == 16


def test_entropy_of_an_answer_that_says_nothing_and_of_a_sure_one() -> None:
    for activation, values, expected in (("softmax", [0.25] * 4, np.log(4)), ("sigmoid", [0.5], np.log(2))):
        found = entropy(torch.tensor(values)[None, :, None], activation)  # type: ignore[arg-type]
        assert float(found.max()) == pytest.approx(expected)
    assert float(entropy(torch.tensor([[1.0, 0.0]]), "softmax")) == 0.0


def test_one_piece_names_classes_of_the_task() -> None:
    with pytest.raises(UsageError, match=r"E_RECIPE: unlabelled.one_piece names 'liver'; the task has heart, lung"):
        CopyPaste(CopyPasteOptions(one_piece=("liver",)), ORGANS)


def test_shares_and_agreement() -> None:
    labels = torch.tensor([0, 1, 1, 2, IGNORE, 0, 0, 0]).view(1, 2, 2, 2)
    assert class_shares(labels, ORGANS).tolist() == [0.25, 0.125]
    assert class_shares(torch.tensor([0, 1, 1, 1]), AnswerMeaning("softmax", ("no", "yes"), 2)).tolist() == [0.25, 0.75]
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    same = agreement(logits, logits, ORGANS)
    other = agreement(logits, logits.roll(1, dims=1), ORGANS)

    assert (float(same["unlabelled/agreement"]), float(same["unlabelled/dice"])) == (1.0, 1.0)
    assert (float(other["unlabelled/agreement"]), float(other["unlabelled/dice"])) == (0.0, 0.0)


def test_crops_of_unlabelled_images_lie_where_structures_do() -> None:
    points = {1: np.array([[4, 5, 1]], dtype=np.int32), 2: np.array([[0, 9, 3], [1, 9, 3]], dtype=np.int32)}
    item: Any = PreparedItem("a", (10, 10, 4), np.eye(4), None, None, None, points)  # type: ignore[arg-type]

    places = places_of_classes([item, item])

    assert {place: len(shares) for place, shares in places.items()} == {1: 2, 2: 4}
    assert points_at(places, (10, 10, 4))[1].tolist() == [[4, 5, 1]] * 2
    assert points_at(places, (20, 10, 8))[1].tolist() == [[9, 5, 3]] * 2
    assert (points_at(places, (3, 1, 1))[2] < [3, 1, 1]).all()


def collapse(watch: PseudoLabelWatch, share: float, steps: int, *, is_full: bool = True) -> bool:
    for _ in range(steps):
        watch.note([share, 0.1], [0.2, 0.1], 0.5, is_full=is_full)
    return watch.has_collapsed


def test_a_class_that_the_teacher_loses_or_gives_everywhere_is_a_collapse() -> None:
    shares = {"heart": 0.05, "lung": 0.1}

    assert not collapse(PseudoLabelWatch(shares), 0.0, 1000, is_full=False)  # it need not know anything yet
    assert not collapse(PseudoLabelWatch(shares), 0.0, STEPS_TO_COLLAPSE - 1)
    assert not collapse(PseudoLabelWatch(shares), 0.006, 1000)  # a tenth of what whole images show
    assert not collapse(PseudoLabelWatch(shares), 0.9, 1000)  # below ten times what crops show
    lost = PseudoLabelWatch(shares)
    assert collapse(lost, 0.001, STEPS_TO_COLLAPSE)
    assert "heart to 0.10% of what it saw" in lost.reason


def test_the_watch_is_restored_as_it_was() -> None:
    watch, again = (PseudoLabelWatch({"heart": 0.05, "lung": 0.1}) for _ in range(2))
    collapse(watch, 0.0, STEPS_TO_COLLAPSE - 1)
    again.restore(watch.values())

    assert not again.has_collapsed
    assert collapse(again, 0.0, 1)


def test_a_sure_teacher_whose_validation_has_halved_has_collapsed() -> None:
    watch = PseudoLabelWatch({"heart": 0.05})
    watch.judge(0.3, 0.8)
    assert not watch.has_collapsed  # it is not sure

    for _ in range(500):
        watch.note([0.05], [0.05], 0.001, is_full=True)
    watch.judge(0.5, 0.8)
    assert not watch.has_collapsed
    watch.judge(0.3, 0.8)
    assert watch.has_collapsed
