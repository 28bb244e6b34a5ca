"""MoCo on pictures, slices and volumes: a view must find the key that a slow copy makes of the other view.

He et al., Momentum Contrast, CVPR 2020: https://arxiv.org/abs/1911.05722; Chen et al., Improved Baselines (v2):
https://arxiv.org/abs/2003.04297; Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers (v3),
ICCV 2021: https://arxiv.org/abs/2104.02057. `v2` compares with a queue of earlier keys, `v3` with those of the batch.

Differences from the papers and the released code:

- The teacher moves after the step of the optimiser; the released code moves it before, one step behind.
- Keys of the anchor's own patient are left out, unless `same_patient` says so.
- Both views change alike, intensities instead of colours, and are not mirrored. v2: batch norms see both views of all
  processes at once instead of shuffled parts of a batch; a network without batch norm avoids what leaks through them.
- v3: the embedding of patches is not frozen.

Shapes: B images of this process, W processes, E projection, Q queue.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medssl_cli.base.errors import UsageError
from medssl_cli.base.strict import PositiveFloat, PositiveInt
from medssl_cli.methods import Losses, PairMethod, PairOptions, TrainingSet, Views
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.contrast import Contrast, key_contrast, matched, mean_log_candidates, unit
from medssl_cli.nn.distributed import gather
from medssl_cli.nn.health import last_steps, spread_figures
from medssl_cli.nn.momentum import SlowEncoder
from medssl_cli.nn.perceptron import perceptron

NOBODY = -1
EASY = 0.99
EARLY_STEPS = 100


def queue_contrast(
    queries: Tensor, keys: Tensor, queue: Tensor, *, temperature: float, is_candidate: Tensor | None = None
) -> Contrast:
    """Each query must find the key of its own image among this one and the keys of a queue.

    MoCo, equation 1: https://arxiv.org/abs/1911.05722.

    Args:
        queries: Projections of the student, [B, E], of any length.
        keys: Projections of the teacher of the other views, [B, E]; they get no gradient.
        queue: Keys of earlier steps of length 1, [Q, E].
        temperature: Divides the cosines.
        is_candidate: Which of the queue each query is compared with, bool [B, Q]; None for all.

    Returns:
        The loss is log(1 + Q) where all scores are equal.
    """
    own, target = unit(queries), unit(keys.detach())
    with torch.autocast(queries.device.type, enabled=False):
        others = own @ queue.to(own.dtype).T
    scores = torch.cat([(own * target).sum(dim=1, keepdim=True), others], dim=1) / temperature
    right = torch.zeros(len(own), dtype=torch.long, device=own.device)
    if is_candidate is not None:
        is_candidate = torch.cat([torch.ones_like(is_candidate[:, :1]), is_candidate], dim=1)
    return matched(scores, right, is_candidate)


def batch_contrast(queries: Tensor, keys: Tensor, *, temperature: float, patients: Tensor | None = None) -> Contrast:
    """Each query must find the key of its own image among those of the batch; one of the two directions.

    MoCo v3, algorithm 1: https://arxiv.org/abs/2104.02057.

    Args:
        queries: Predictions of the student, [B, E], of any length.
        keys: Projections of the teacher of the other views, [B, E]; they get no gradient.
        temperature: Divides the cosines, and twice it multiplies the loss.
        patients: Number of each image's patient, [B]: other images of the same one are no candidates. None for all.

    Returns:
        The loss is 2 temperature log(W B) where all keys are equal and all patients different.
    """
    found = key_contrast(queries, keys.detach(), temperature=temperature, patients=patients)
    scale = 2 * temperature
    return Contrast(scale * found.loss, found.accuracy, scale * found.no_information)


class KeyQueue(nn.Module):
    """The latest keys of all processes and whose they are; in the beginning random ones of nobody.

    Args:
        length: Q.
        embedding_dim: E.
    """

    keys: Tensor
    patients: Tensor
    place: Tensor

    def __init__(self, length: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", unit(torch.randn(length, embedding_dim)))
        self.register_buffer("patients", torch.full((length,), NOBODY))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor, patients: Tensor | None) -> None:
        """Put the keys of the batch of all processes in the place of the oldest.

        Args:
            keys: [B, E], of any length.
            patients: Number of each one's patient, [B]; None if nobody knows.
        """
        newest = gather(unit(keys)).to(self.keys.dtype)
        owners = torch.full_like(newest[:, 0], NOBODY, dtype=torch.long) if patients is None else gather(patients)
        rows = (self.place + torch.arange(len(newest), device=newest.device)) % len(self.keys)
        self.keys[rows] = newest
        self.patients[rows] = owners
        self.place.copy_((self.place + len(newest)) % len(self.keys))


class Options(PairOptions):
    """See `PairOptions`. Defaults are those of v3 for a ResNet and short trainings.

    Args:
        variant: `v3`, or `v2` with a queue.
        hidden_dim: Width of hidden layers; v2 has 2048.
        projection_dim: Size of projections; v2 has 128.
        temperature: Divides cosines; v3 on a ResNet has 1.
        momentum: Momentum of the teacher: of v3 in the first step, rising to 1 along half a cosine; of v2 throughout
            (0.999).
        queue_length: Q of v2, a multiple of the batch of all processes; at most half the number of images.
        num_layers: Number of layers of the projector of v3; 3 for vision transformers.
        predictor_norm: Whether the predictor of v3 ends with a norm that learns nothing, as for vision transformers.
        same_patient: Whether keys of other images of the same patient are `ignored` or repelled like all others.
    """

    variant: Literal["v2", "v3"] = "v3"
    hidden_dim: PositiveInt = 4096
    projection_dim: PositiveInt = 256
    temperature: PositiveFloat = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    queue_length: PositiveInt | None = None
    num_layers: Annotated[int, Field(ge=2, le=4)] = 2
    predictor_norm: bool = False
    same_patient: Literal["ignored", "negative"] = "ignored"

    @model_validator(mode="after")
    def _of_the_variant(self) -> Self:
        if (self.variant == "v2") != (self.queue_length is not None):
            raise ValueError("variant v2 has a queue_length, variant v3 has none")
        return self


class Method(PairMethod):
    """MoCo on views of `crop_size` voxels; see `PairMethod`."""

    def __init__(self, backbone: Backbone, options: Options, crop_size: tuple[int, int, int]) -> None:
        super().__init__(backbone, options, crop_size)
        self.options = options
        width, size = options.hidden_dim, options.projection_dim
        self.predictor: nn.Module = nn.Identity()
        self.queue: KeyQueue | None = None
        self._keys: list[tuple[Tensor, Tensor | None]] = []
        if options.queue_length is not None:
            self.projector = perceptron([backbone.embedding_dim, width, size], has_norms=False, last_bias=True)
            self.queue = KeyQueue(options.queue_length, size)
        else:
            hidden = [width] * (options.num_layers - 1)
            self.projector = perceptron([backbone.embedding_dim, *hidden, size], last_norm="plain")
            self.predictor = perceptron([size, width, size], last_norm="plain" if options.predictor_norm else "none")
        last = 1.0 if self.queue is None else options.momentum
        self.teacher = SlowEncoder(backbone, self.projector, momentum=options.momentum, last_momentum=last)
        self.synchronise()

    def require_batch(self, batch_size: int) -> None:
        """See `PairMethod.require_batch`.

        Raises:
            UsageError: `E_RECIPE`.
        """
        super().require_batch(batch_size)
        length = self.options.queue_length
        if length is not None and length % batch_size:
            raise UsageError(
                "E_RECIPE",
                f"method.queue_length {length} must be a multiple of the batch of {batch_size} images",
                hint=f"set it to {max(1, length // batch_size) * batch_size}",
            )

    def begin(self, training_set: TrainingSet) -> None:
        """See `PairMethod.begin`.

        Raises:
            UsageError: `E_RECIPE`, the queue would hold the anchors' own images.
        """
        super().begin(training_set)
        length, images = self.options.queue_length, len(training_set.image_groups)
        if length is not None and length > images / 2:
            raise UsageError(
                "E_RECIPE",
                f"method.queue_length {length} is more than half of the {images} images",
                hint="a longer queue holds the anchor's own image as one to repel; variant v3 needs no queue",
            )

    def loss(self, views: Views, progress: float) -> Losses:
        """Contrast of what the student says of one view with the teacher's keys of the other."""
        pair = self.pair(views)
        patients = views.patients if self.options.same_patient == "ignored" else None
        found, keys = self._in_queue(pair, patients) if self.queue is not None else self._in_batch(pair, patients)
        shown = {"accuracy": found.accuracy, "no_information": found.no_information}
        return Losses(found.loss, {"contrast": found.loss.detach()}, shown | spread_figures(keys))

    def _in_queue(self, pair: tuple[Tensor, Tensor], patients: Tensor | None) -> tuple[Contrast, Tensor]:
        """Version 2: the first view finds the key of the second."""
        assert self.queue is not None
        queries = self._student(pair[0])
        keys = self.teacher(pair[1])
        is_candidate = None if patients is None else patients[:, None] != self.queue.patients
        temperature = self.options.temperature
        found = queue_contrast(queries, keys, self.queue.keys, temperature=temperature, is_candidate=is_candidate)
        self._keys.append((keys, patients))
        return found, keys

    def _in_batch(self, pair: tuple[Tensor, Tensor], patients: Tensor | None) -> tuple[Contrast, Tensor]:
        """Version 3: each view finds the key of the other in the batch of all processes."""
        keys = [self.teacher(view) for view in pair]
        one, other = (
            batch_contrast(self._student(view), key, temperature=self.options.temperature, patients=patients)
            for view, key in zip(pair, reversed(keys), strict=True)
        )
        accuracy = (one.accuracy + other.accuracy) / 2
        return Contrast(one.loss + other.loss, accuracy, one.no_information + other.no_information), keys[0]

    def _student(self, view: Tensor) -> Tensor:
        """Queries [B, E] of a view."""
        queries: Tensor = self.predictor(self.projector(self.backbone.embed(view)))
        return queries

    def before_step(self, progress: float) -> None:
        """Forget the keys of a step that was left out."""
        self._keys.clear()

    def after_step(self, progress: float) -> None:
        """Keep the keys of the step, and let the teacher follow."""
        for keys, patients in self._keys:
            assert self.queue is not None
            self.queue.push(keys, patients)
        self._keys.clear()
        self.teacher.follow((self.backbone, self.projector), progress)

    def baselines(self, labels: Tensor | None = None) -> dict[str, float]:
        """Equal keys: by the logarithm of the number of candidates."""
        options, patients = self.options, self.patients
        is_ignoring = options.same_patient == "ignored" and len(patients) > 0
        if options.queue_length is not None:
            shares = patients.bincount()[patients] / len(patients) if is_ignoring else torch.zeros(1)
            return {"no_information": float((1 + options.queue_length * (1 - shares)).log().mean())}
        if self.batch_size == 0:
            return {}
        candidates = math.log(self.batch_size)
        if is_ignoring:
            candidates = mean_log_candidates(patients, self.batch_size, per_image=1)
        return {"no_information": 4 * options.temperature * candidates}

    def health(self, logged: Sequence[Mapping[str, float]]) -> list[str]:
        """Keys that are found by chance, or at once: by what batch norms tell of the batch."""
        length = self.options.queue_length
        accuracies = [entry for entry in logged if entry.get("accuracy") is not None]
        if length is None or not accuracies:
            return []
        last = last_steps(logged, "accuracy")
        if last and max(entry["accuracy"] for entry in last) < 2 / (length + 1):
            return [f"keys are found by chance: {last[-1]['accuracy']:.2%} of {length + 1}"]
        if any(entry["accuracy"] > EASY for entry in accuracies if entry["step"] <= EARLY_STEPS):
            return [f"keys were found at once, before step {EARLY_STEPS}: batch norms may tell which belong together"]
        return []
