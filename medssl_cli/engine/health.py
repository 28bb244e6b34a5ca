"""Looks at a pre-training while it runs: do embeddings spread, what do they tell apart, and is the loss worth anything.

Nothing here changes the training: the network is put back as it was, and random numbers come from streams of their own.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medssl_cli.base.files import write_atomic
from medssl_cli.base.talk import Talk
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.views import make_views
from medssl_cli.engine.metrics_log import read_health, read_metrics
from medssl_cli.engine.probe import Probe, Question
from medssl_cli.engine.processes import Processes
from medssl_cli.engine.randomness import Purpose, generator
from medssl_cli.engine.state import TrainingState
from medssl_cli.methods import MethodBase
from medssl_cli.nn.health import embedding_std, linear_accuracy, mean_cosine, neighbour_accuracy, rank_me
from medssl_cli.nn.training_mode import in_mode

COLLAPSED_STD: Final = 0.1
COLLAPSED_RANK: Final = 0.1
COLLAPSED_COSINE: Final = 0.98
JUDGED_FROM: Final = 0.5
RECENT_SHARE: Final = 0.1
MICRO_BATCH: Final = 8
DRAWN: Final = {"matrices": "plots", "pictures": "pictures"}
"""Folders of a run for what a method draws."""
SMALLEST_PX: Final = 512
"""Pictures are enlarged by whole factors while they stay below this."""
CELL_PX: Final = 24


@dataclass(frozen=True)
class Alarm:
    """Something that a user should act on.

    Args:
        code: `W_COLLAPSE`, `W_CLUSTERS` or `W_NOT_LEARNING`.
        message: Message with the numbers.
    """

    code: str
    message: str


class Health:
    """The figures of one run.

    Args:
        root: Run folder.
        probe: Crops to look at.
        processes: All compute, the main one writes.
        seed: Seed of the recipe.
    """

    def __init__(self, root: Path, probe: Probe, processes: Processes, *, seed: int) -> None:
        self._root = root
        self._probe = probe
        self._processes = processes
        self._seed = seed

    def look(self, state: TrainingState) -> dict[str, float]:
        """Figures of the embeddings at this step, by name. All processes call it; the network stays as it is."""
        with in_mode(state.network, training=False), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            embeddings = torch.cat([self._embed(state, part) for part in self._probe.crops.split(MICRO_BATCH)])
            matrices, pictures = self._matrices(state), self._pictures(state)
        if self._processes.is_main:
            for name, matrix in matrices.items():
                write_matrix(self._root / DRAWN["matrices"], name, matrix, is_first=state.step == 0)
            for name, picture in pictures.items():
                write_picture(self._root / DRAWN["pictures"], name, picture)
        return figures(embeddings, self._probe.questions, matrices)

    def _embed(self, state: TrainingState, crops: Tensor) -> Tensor:
        """Embeddings of crops, on the CPU."""
        on_device = self._processes.fabric.to_device(crops)
        embeddings: Tensor = state.compute(lambda method: method.backbone.embed(on_device))
        return embeddings.float().cpu()

    def _matrices(self, state: TrainingState) -> dict[str, Tensor]:
        """Matrices of the method, on the CPU."""
        if not len(self._probe.boxes):
            return {}
        boxes = self._processes.fabric.to_device(self._probe.boxes)

        def draw(method: MethodBase) -> dict[str, Tensor]:
            return method.matrices(make_views(method.views(), boxes, Draws(generator(self._seed, Purpose.HEALTH))))

        return {name: matrix.float().cpu() for name, matrix in state.compute(draw).items()}

    def _pictures(self, state: TrainingState) -> dict[str, Tensor]:
        """Pictures of the method, on the CPU; of the same views every time."""
        known = self._probe.windows
        if known is None:
            return {}
        images = self._processes.fabric.to_device(known.images)

        def draw(method: MethodBase) -> dict[str, Tensor]:
            draws = Draws(generator(self._seed, Purpose.HEALTH))
            return method.pictures(make_views(method.views(), images, draws, windows=known.windows))

        return {name: picture.float().cpu() for name, picture in state.compute(draw).items()}


def figures(embeddings: Tensor, questions: Mapping[str, Question], matrices: Mapping[str, Tensor]) -> dict[str, float]:
    """Everything that is measured on embeddings [N, E].

    Args:
        embeddings: Embeddings of the probe's crops.
        questions: What to read off them.
        matrices: Matrices of the method; of square ones called `...cosines` the mean is taken.
    """
    found = {
        "health/std": embedding_std(embeddings),
        "health/std_evenly_spread": embeddings.shape[1] ** -0.5,
        "health/rank": rank_me(embeddings),
    }
    for name, matrix in matrices.items():
        if name.endswith("cosines") and matrix.shape[0] == matrix.shape[1] > 1:
            found[f"health/{name}"] = mean_cosine(matrix)
    for name, question in questions.items():
        asked = (
            embeddings[question.is_asked],
            question.classes[question.is_asked],
            question.is_fitted[question.is_asked],
        )
        found[f"probe/{name}/neighbours"] = neighbour_accuracy(*asked)
        found[f"probe/{name}/linear"] = linear_accuracy(*asked)
        found[f"probe/{name}/chance"] = 1 / len(asked[1].unique())
    return found


def collapse_alarms(first: Mapping[str, float], now: Mapping[str, float]) -> list[Alarm]:
    """`W_COLLAPSE`, if embeddings have fallen together since the start.

    Args:
        first: Figures of the untrained network.
        now: Figures of the present one.
    """
    std, rank = now["health/std"], now["health/rank"]
    reasons = []
    if std < COLLAPSED_STD * first["health/std"]:
        reasons.append(f"their standard deviation fell from {first['health/std']:.2g} to {std:.2g}")
    if rank - 1 < COLLAPSED_RANK * (first["health/rank"] - 1):
        reasons.append(f"their effective rank fell from {first['health/rank']:.1f} to {rank:.1f}")
    cosines = {name: value for name, value in now.items() if name.endswith("cosines")}
    for name, value in cosines.items():
        if value > COLLAPSED_COSINE:
            reasons.append(f"{name.removeprefix('health/')} have a mean of {value:.3f}")
    return (
        [Alarm("W_COLLAPSE", "embeddings of all images are nearly the same: " + ", ".join(reasons))] if reasons else []
    )


def learning_alarms(
    losses: Sequence[float],
    baselines: Mapping[str, float],
    progress: float,
    *,
    judged_from: float = JUDGED_FROM,
    learnt_below: float = 1.0,
) -> list[Alarm]:
    """`W_NOT_LEARNING`, if well into the run the loss is not below the best predictor that looks at nothing.

    Args:
        losses: Logged so far.
        baselines: Baselines of the method.
        progress: Share of the run that is done.
        judged_from: Share of the run before which nothing is said.
        learnt_below: Share of the best baseline that the loss must be below.
    """
    if not losses or not baselines or progress < judged_from:
        return []
    recent = losses[-max(1, round(len(losses) * RECENT_SHARE)) :]
    loss, (name, best) = sum(recent) / len(recent), min(baselines.items(), key=lambda item: item[1])
    if loss < learnt_below * best:
        return []
    return [Alarm("W_NOT_LEARNING", f"after {progress:.0%} of the steps the loss is {loss:.4f}, {name} has {best:.4f}")]


Concerns = Callable[[Sequence[Mapping[str, float]]], list[str]]


def alarms(
    root: Path,
    baselines: Mapping[str, float],
    progress: float,
    concerns: Concerns = lambda _: [],
    *,
    code: str = "W_CLUSTERS",
    judged_from: float = JUDGED_FROM,
    learnt_below: float = 1.0,
) -> list[Alarm]:
    """What a run's records give cause for.

    Args:
        root: Run folder.
        baselines: Baselines of the method.
        progress: Share of the run that is done.
        concerns: What the method says of its logged steps.
        code: Code of the alarm about them.
        judged_from: See `learning_alarms`.
        learnt_below: See `learning_alarms`.
    """
    looks, logged = read_health(root), read_metrics(root)
    losses = [entry["loss"] for entry in logged if entry["loss"] is not None]
    found = collapse_alarms(looks[0], looks[-1]) if len(looks) > 1 else []
    if (worries := concerns(logged)) and code not in {alarm.code for alarm in found}:
        found.append(Alarm(code, "; ".join(worries)))
    known = {alarm.code for alarm in found}
    late = learning_alarms(losses, baselines, progress, judged_from=judged_from, learnt_below=learnt_below)
    return found + [alarm for alarm in late if alarm.code not in known]


def say_new(found: Sequence[Alarm], said: set[str], talk: Talk) -> None:
    """Tell each alarm once as long as it lasts; what has passed may be told again."""
    for alarm in found:
        if alarm.code not in said:
            talk.note(f"{alarm.code}: {alarm.message}")
    said.clear()
    said.update(alarm.code for alarm in found)


def write_matrix(folder: Path, name: str, matrix: Tensor, *, is_first: bool) -> None:
    """Draw a matrix with entries in -1...1: 0 is white, 1 blue, -1 red. The untrained network's stays beside it.

    Args:
        folder: Folder for `<name>.png` and `<name>-start.png`.
        name: Name of the matrix.
        matrix: [rows, columns].
        is_first: Whether the network is untrained.
    """
    values = np.clip(matrix.numpy().astype(np.float64), -1, 1)[..., None]
    blue, red, white = np.array([31, 99, 168.0]), np.array([200, 60, 40.0]), np.array([255, 255, 255.0])
    colours = white + np.where(values > 0, values * (blue - white), -values * (red - white))
    picture = Image.fromarray(colours.round().astype(np.uint8), "RGB")
    scale = max(1, CELL_PX * 16 // max(values.shape[:2]))
    _write_enlarged(folder, f"{name}{'-start' * is_first}", picture, scale)


def write_picture(folder: Path, name: str, picture: Tensor) -> None:
    """Write a picture as a file.

    Args:
        folder: Folder for `<name>.png`.
        name: Name of the picture.
        picture: Grey [H, W] or colours [H, W, 3], 0 to 1.
    """
    values = (picture.clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    _write_enlarged(folder, name, Image.fromarray(values), max(1, SMALLEST_PX // max(values.shape[:2])))


def _write_enlarged(folder: Path, name: str, picture: Image.Image, scale: int) -> None:
    """Write a picture, each pixel so many times as wide and high."""
    enlarged = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    enlarged.save(buffer, format="PNG")
    folder.mkdir(exist_ok=True, mode=0o700)
    write_atomic(folder / f"{name}.png", buffer.getvalue())
