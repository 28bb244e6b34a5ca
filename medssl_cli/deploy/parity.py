"""The gate of export: the answers of the trained run against those of the file that was written.

What is expected comes from the run alone: its recipe, its classes, its network through torch. What is found comes from
the file, read from disk by the code that `medssl infer` uses. Neither side takes anything from the other, so a file
with other names, another spacing or another weight cannot agree with itself.

With two exceptions: where boxes overlap, the last digit of a score decides which of them stays; and where only the
largest part of a class stays, a single voxel. So the run's decoding reads the file's numbers, after these were compared
with torch's, and both must find the same boxes, and drop the same parts.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medssl_cli.base.errors import GateError, MedsslError
from medssl_cli.deploy.bundle import Bundle, Parity, Precision, patient_digest
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.heads import Head, MasksHead, differing
from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.imaging.measuring import voxel_ml
from medssl_cli.imaging.placement import ChannelImages
from medssl_cli.imaging.preprocessing import channel_images
from medssl_cli.imaging.segment import segment_volume
from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.overlap import dice
from medssl_cli.recipe import TaskRecipe, recipe_hash
from medssl_cli.tasks import load_part, supervision_of

TOLERANCE: Final = 1e-4
MAX_BOX: Final = 1e-4
"""By which an edge of a box in pixels, or its score, may differ: both sides read the file's numbers."""
TIES: Final = 2
"""Voxels of a structure that may differ in any case: where two logits are equal, rounding decides."""
SEEN_SPLITS: Final = ("train", "val")
UNPROVEN: Final = Parity(max_abs_difference=1e9, num_cases=1)
"""Parity of a file that is not compared yet: should it be left behind, it says the worst about itself."""
NOT_COMPARED: Final = ("contract_version", "medssl_version", "licence", "parity", "memory_bytes")
"""What a bundle says that is not the run's; everything else is compared."""
FAULTS_OF_THE_FILE: Final = ("E_MODEL_INVALID", "E_MODEL_CORRUPT", "E_RUNTIME")
HINT: Final = "no file was written; please report the recipe and the versions that medssl doctor prints"


@dataclass(frozen=True)
class ParityLimits:
    """How far a file may be from its run.

    Args:
        tolerance: Largest difference of a network's number, relative to max(1, largest number of its call).
        agreement: Smallest fraction of voxels with the same class, of any image.
        dice: Smallest Dice of a structure between both sides.
        probability: Largest difference of a finding's probability.
    """

    tolerance: float = TOLERANCE
    agreement: float = 0.9999
    dice: float = 0.9999
    probability: float = 1e-4


LIMITS: Final[dict[Precision, ParityLimits]] = {
    "float32": ParityLimits(),
    "float16": ParityLimits(tolerance=1e-2, agreement=0.999, dice=0.995, probability=5e-3),
}
"""By the numbers that the file computes in: those of float16 have 11 significant bits."""


class TrainedRun(Protocol):
    """What export needs of a fine-tuned run; `engine.finetuned.FineTunedRun` is one."""

    @property
    def recipe(self) -> TaskRecipe:
        """Locked recipe."""

    @property
    def classes(self) -> dict[int, str]:
        """Names by output of the network."""

    @property
    def network(self) -> nn.Module:
        """On the CPU."""

    @property
    def manifest(self) -> dict[str, Any]:
        """`manifest.json`."""

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights."""

    @property
    def in_channels(self) -> int:
        """Channels of an image."""


def expected_contract(run: TrainedRun, head: Head, precision: Precision = "float32") -> dict[str, Any]:
    """What the file must say about itself, by field of the bundle; apart from the code that writes it there.

    Args:
        run: The run.
        head: How the run's task reads its network's numbers.
        precision: Numbers that the file is to compute in.
    """
    recipe, splits, supervision = run.recipe, run.manifest["splits"], supervision_of(run.recipe)
    seen = {patient_digest(entry["patient"]) for name in SEEN_SPLITS for entry in splits.get(name, ())}
    return {
        "task": recipe.name,
        "preprocessing": supervision.preprocessing,
        "head": head,
        "in_channels": run.in_channels,
        "modality": recipe.data.modality,
        "label_set": supervision.label_set,
        "recipe_sha256": recipe_hash(recipe),
        "weights_sha256": run.weights_sha256,
        "manifest_sha256": run.manifest["sha256"],
        "trained_on": tuple(sorted(seen)),
        "split_seed": recipe.split_seed,
        "fold": run.manifest["arguments"]["fold"],
        "class_details": recipe.class_details,
        "algorithm": recipe.algorithm,
        "intended_use": recipe.intended_use,
        "precision": precision,
    }


def require_contract(expected: dict[str, Any], bundle: Bundle) -> None:
    """Refuse a file that says something else about itself than its run.

    Raises:
        GateError: `E_PARITY`, with the names of the fields.
    """
    others: list[str] = []
    for name, value in expected.items():
        found = getattr(bundle, name)
        if found != value:
            others += differing(value, found, "head.") if name == "head" else [name]
    if others:
        raise GateError("E_PARITY", f"the written file differs from the run in: {', '.join(others)}", hint=HINT)


@dataclass
class Comparison:
    """How far the two sides are apart, over all images.

    Args:
        difference: Largest difference of a network's number, divided by max(1, largest number of its call).
        strays: Names of classes of which the answers differ by more than rounding.
        num_marked: Answers on the real images that were not empty.
        num_cases: Images.
        limits: How far apart they may be.
    """

    difference: float = 0.0
    strays: set[str] = field(default_factory=set)
    num_marked: int = 0
    num_cases: int = 0
    limits: ParityLimits = field(default_factory=ParityLimits)

    @property
    def parity(self) -> Parity:
        """For the bundle."""
        return Parity(max_abs_difference=self.difference, num_cases=self.num_cases)

    def require(self) -> None:
        """Refuse a file that gives other answers than its run.

        Raises:
            GateError: `E_PARITY`.
        """
        if not self.difference <= self.limits.tolerance or self.strays:
            raise GateError("E_PARITY", self.told(), hint=HINT)

    def told(self) -> str:
        """What is wrong, with numbers."""
        strays = f", answers for {', '.join(sorted(self.strays))}" if self.strays else ""
        return (
            f"on {self.num_cases} images the written model differs: the network's numbers (logits) by "
            f"{self.difference:.1e} ({self.limits.tolerance:.0e} allowed){strays}"
        )

    def measure(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Take a network's numbers of a call into account.

        Raises:
            GateError: `E_PARITY`, those of the trained network are not finite.
        """
        if not np.isfinite(expected).all():
            raise GateError("E_PARITY", "the trained network's answers are not finite numbers", hint=HINT)
        distance = float(np.abs(expected - found).max()) / max(1.0, float(np.abs(expected).max()))
        self.difference = max(self.difference, distance if np.isfinite(distance) else UNPROVEN.max_abs_difference)


@dataclass
class MaskComparison(Comparison):
    """How far masks are apart, over all images.

    Args:
        agreement: Smallest fraction of voxels with the same class.
        dice: Smallest Dice of a structure of one name between both sides.
    """

    agreement: float = 1.0
    dice: float = 1.0

    @property
    def parity(self) -> Parity:
        """For the bundle."""
        return Parity(
            max_abs_difference=self.difference,
            argmax_agreement=self.agreement,
            min_dice=self.dice,
            num_cases=self.num_cases,
        )

    def require(self) -> None:
        """See `Comparison.require`."""
        if self.agreement < self.limits.agreement:
            raise GateError("E_PARITY", self.told(), hint=HINT)
        super().require()

    def told(self) -> str:
        """See `Comparison.told`."""
        structures = f", volumes of {len(self.strays)} structures" if self.strays else ""
        return (
            f"on {self.num_cases} images the written model differs: logits by {self.difference:.1e} "
            f"({self.limits.tolerance:.0e} allowed), argmax agreement {self.agreement:.6f}, Dice {self.dice:.6f} "
            f"({self.limits.agreement} needed){structures}"
        )


def compare(
    run: TrainedRun,
    head: Head,
    model: OnnxModel,
    examples: Sequence[Volume | ChannelImages],
    limits: ParityLimits = LIMITS["float32"],
) -> Comparison:
    """Compare torch with a file on whole images: every number of the network, and the answers by name.

    The last example is noise made of the voxels of the smallest one: it makes a network answer everywhere.

    Args:
        run: The expected side.
        head: Head of the expected side.
        model: The found side, read from the file.
        examples: Real images, of each example one per channel; a single one needs no sequence.
        limits: How far apart the two may be.

    Raises:
        GateError: `E_PARITY`, one side gives no finite numbers, or the file cannot be used at all.
    """
    real = [channel_images(images) for images in examples]
    smallest = min(real, key=lambda images: images[0].voxels.size)
    noise = [shuffled(image, run.recipe, seed=number) for number, image in enumerate(smallest)]
    compare_one: Callable[..., None] = _COMPARED[head.kind]
    found: Any = (MaskComparison if head.kind == "masks" else Comparison)(limits=limits)
    for images in (*real, noise):
        compare_one(run, head, model, images, found, is_real=found.num_cases < len(real))
        found.num_cases += 1
    found.num_cases = len(real)
    return found


def _compare_masks(
    run: TrainedRun, head: MasksHead, model: OnnxModel, images: ChannelImages, found: MaskComparison, *, is_real: bool
) -> None:
    recipe, structure = run.recipe, _decoding(run).structure
    segment = partial(
        segment_volume,
        images=images,
        preprocessing=recipe.data.preprocessing,
        tile=recipe.tile_size,
        overlap=recipe.inference.overlap,
        mirror_axes=recipe.inference.mirror_axes,
        activation=head.activation,
        num_outputs=len(run.classes) + (head.activation == "softmax"),
    )
    with faults_are_the_files():
        expected = segment(_compared(run.network, model.predict, found))
        answer = model.segment(images)
        if answer.shape != expected.shape:
            raise GateError("E_PARITY", "a mask of the written model is on another grid than the image", hint=HINT)
        if head.largest is not None:
            answer = _before_the_end(run, head, segment(model.predict), answer, found)
    found.agreement = min(found.agreement, float((expected == answer).mean()))
    named = {name: value for value, name in enumerate(model.bundle.head.words, start=1)}
    millilitres = voxel_ml(images[0].affine)
    for value, name in run.classes.items():
        ours = structure(expected, value)
        theirs = structure(answer, named[name]) if name in named else np.zeros_like(ours)
        if not (ours.any() or theirs.any()):
            continue
        found.num_marked += is_real
        found.dice = min(found.dice, dice(theirs, ours))
        allowed = max((1 - found.limits.dice) * (ours.sum() if is_real else ours.size), TIES)
        volumes_ml = ours.sum() * millilitres, theirs.sum() * millilitres
        is_stray = (ours != theirs).sum() > allowed or abs(volumes_ml[0] - volumes_ml[1]) > allowed * millilitres
        found.strays |= {name} if is_stray else set()


def _before_the_end(
    run: TrainedRun, head: MasksHead, plain: NDArray[np.uint8], answer: NDArray[np.uint8], found: MaskComparison
) -> NDArray[np.uint8]:
    """The file's answer before parts of it are dropped, once the file has dropped just those that the run would drop.

    A single voxel decides which of two parts is the larger one, so the run's rule reads the file's own numbers here.
    """
    if not np.array_equal(_decoding(run).finished(plain, head.largest, run.classes), answer):
        found.strays |= set(run.classes.values())
    return plain


def _compare_findings(
    run: TrainedRun, head: Head, model: OnnxModel, images: ChannelImages, found: Comparison, *, is_real: bool
) -> None:
    with faults_are_the_files():
        expected = _decoding(run).answer(
            _compared(run.network, model.predict, found),
            images,
            preprocessing=supervision_of(run.recipe).preprocessing,
            head=head,
        )
        answer = model.answer(images)
    named = dict(zip(model.bundle.head.words, answer, strict=True))
    found.num_marked += is_real
    for place, name in run.classes.items():
        is_stray = not abs(expected[place] - named.get(name, np.inf)) <= found.limits.probability
        found.strays |= {name} if is_stray else set()


def _compare_boxes(
    run: TrainedRun, head: Head, model: OnnxModel, images: ChannelImages, found: Comparison, *, is_real: bool
) -> None:
    compared = _compared(run.network, model.predict, found)

    def predict(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        compared(batch)
        return model.predict(batch)

    with faults_are_the_files():
        expected = _decoding(run).answer(
            predict, images, preprocessing=supervision_of(run.recipe).preprocessing, head=head
        )
        answer = model.answer(images)
    found.num_marked += is_real * len(expected.boxes)
    named = {name: place for place, name in enumerate(model.bundle.head.words)}
    for place, name in run.classes.items():
        ours, theirs = expected.classes == place, answer.classes == named.get(name, -1)
        is_equal = ours.sum() == theirs.sum() and np.allclose(
            np.column_stack([expected.boxes, expected.scores])[ours],
            np.column_stack([answer.boxes, answer.scores])[theirs],
            rtol=0,
            atol=MAX_BOX,
        )
        found.strays |= set() if is_equal else {name}


_COMPARED: Final = {"masks": _compare_masks, "findings": _compare_findings, "boxes": _compare_boxes}


def _decoding(run: TrainedRun) -> Any:
    """What reads the numbers of a run's network."""
    return load_part(run.recipe.task.name, "decode")


def _compared(
    network: nn.Module, other: Callable[..., NDArray[np.float32]], found: Comparison
) -> Callable[..., NDArray[np.float32]]:
    """The network as numbers to numbers that also measures how far another one is from it."""

    @torch.inference_mode()
    def predict(*inputs: NDArray[Any]) -> NDArray[np.float32]:
        expected: NDArray[np.float32] = network(*map(torch.from_numpy, inputs)).float().numpy()
        found.measure(expected, other(*inputs))
        return expected

    return predict


@contextlib.contextmanager
def faults_are_the_files() -> Iterator[None]:
    """Around using the file: one that cannot be used does not give the run's answers.

    Raises:
        GateError: `E_PARITY`.
    """
    try:
        yield
    except MedsslError as error:
        if error.code not in FAULTS_OF_THE_FILE:
            raise
        raise GateError("E_PARITY", f"the written file cannot be used: {error.message}", hint=HINT) from error


def shuffled(volume: Volume, recipe: TaskRecipe, *, seed: int = 0) -> Volume:
    """Noise on an image's grid: its own voxels in random order, so that any rule of intensities makes sense of them.

    Args:
        volume: The image.
        recipe: Recipe of the model: at most about one and a half tiles of noise are made along each axis.
        seed: Seed of the order; that of each channel is another one.
    """
    target = recipe.data.spacing_mm or spacing_mm(volume.affine)
    reach_mm = 1.5 * max(recipe.tile_size) * max(target)
    sizes = [
        min(size, max(1, int(np.ceil(reach_mm / spacing))))
        for size, spacing in zip(volume.shape, spacing_mm(volume.affine), strict=True)
    ]
    part = volume.voxels[:, : sizes[0], : sizes[1], : sizes[2]]
    voxels = np.random.default_rng(seed).permuted(part.reshape(len(part), -1), axis=1).reshape(part.shape)
    return replace(volume, voxels=voxels)
