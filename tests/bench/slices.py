"""Steps of SwAV as released and as here, and of joint learning beside its trunk alone, in turn on the same pictures."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medssl_cli.base import plugins
from medssl_cli.cache.arrays import write_array
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.slice_views import canvas_for
from medssl_cli.data.slices import ImageIndex, SliceDataset, StepPlan, collate
from medssl_cli.data.views import make_views
from medssl_cli.engine.devices import lay_out, resolve_device, tune_process
from medssl_cli.engine.optimisation import build_optimizer
from medssl_cli.imaging.preprocessing import Intensity
from medssl_cli.imaging.resize import resize
from medssl_cli.methods import MethodBase, Slices, TrainingSet, Views
from medssl_cli.nn.backbones import resnet
from medssl_cli.recipe import Optimizer
from tests.bench.published_swav import Crops, PublishedStep

PICTURE: Final = 320
NUM_PICTURES: Final = 64
STACK: Final = 16
NUM_VOLUMES: Final = 8
COLUMNS: Final = ("step", "s/step", "CPU s/step", "steps per s, ratio", "steps per CPU s, ratio")

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Setting:
    """Network, crops and batch.

    Args:
        depth: Of the ResNet.
        width: Of the ResNet.
        size: Edge of a large crop, pixels.
        local_size: Edge of a small crop, pixels.
        num_local: Small crops.
        batch_size: Pictures.
        volumes: Of a joint step, each of 16 slices.
    """

    depth: int
    width: int
    size: int
    local_size: int
    num_local: int
    batch_size: int
    volumes: int


SETTINGS: Final = {
    "small": Setting(depth=18, width=16, size=64, local_size=24, num_local=6, batch_size=32, volumes=4),
    "medium": Setting(depth=50, width=64, size=96, local_size=40, num_local=6, batch_size=32, volumes=2),
    "full": Setting(depth=50, width=64, size=224, local_size=96, num_local=6, batch_size=64, volumes=8),
}


@dataclass(frozen=True)
class Timed:
    """Medians of one kind of step, loading included where its name says so."""

    name: str
    wall_s: float
    cpu_s: float
    reference: str

    def row(self, all_steps: "dict[str, Timed]") -> tuple[str, ...]:
        """For a table."""
        other = all_steps[self.reference]
        ratios = f"{other.wall_s / self.wall_s:.2f}", f"{other.cpu_s / self.cpu_s:.2f}"
        return self.name, f"{self.wall_s:.3f}", f"{self.cpu_s:.3f}", *ratios


@dataclass(frozen=True)
class SliceBenchmark:
    """All lines."""

    device: str
    precision: Precision
    num_threads: int
    steps: tuple[Timed, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """For a table; ratios are to the line that a line is compared with."""
        found = {step.name: step for step in self.steps}
        return [step.row(found) for step in self.steps]

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


RELEASED: Final = "SwAV as released, loading and step"
RELEASED_STEP: Final = "SwAV as released, step alone"
TRUNK: Final = "forward and backward of the joint step's trunk"


def bench_slices(
    setting: Setting, *, device: str = "cpu", rounds: int = 3, precision: Precision = "fp32"
) -> SliceBenchmark:
    """Time every kind of step in turn.

    Args:
        setting: Network, crops and batch.
        device: As for `medssl pretrain`.
        rounds: Steps of each kind, after one that is not counted.
        precision: Of all forward passes; bf16 by autocast.

    Raises:
        UsageError: `E_DEVICE`.
    """
    resolved = resolve_device(device)
    tune_process()
    with TemporaryDirectory() as folder:
        contenders = _contenders(setting, resolved, Path(folder), precision)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, (work, _) in contenders.items():
                taken = _timed(work, number, resolved)
                if number:
                    times[name].append(taken)
    steps = []
    for name, (_, reference) in contenders.items():
        wall_s, cpu_s = (median(column) for column in zip(*times[name], strict=True))
        steps.append(Timed(name, wall_s, cpu_s, reference))
    return SliceBenchmark(resolved, precision, torch.get_num_threads(), tuple(steps))


Work = Callable[[int], object]


def _contenders(setting: Setting, device: str, folder: Path, precision: Precision) -> dict[str, tuple[Work, str]]:
    pictures, items = _pictures(folder, (PICTURE, PICTURE, 1), NUM_PICTURES, canvas_for(setting.size))
    _, volumes = _pictures(folder, (PICTURE // 2, PICTURE // 2, STACK), NUM_VOLUMES, canvas_for(setting.size))
    autocast = partial(torch.autocast, torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    crops = Crops(2, setting.num_local, setting.size, setting.local_size)
    released = PublishedStep(
        _network(setting), hidden_dim=512, num_prototypes=24, crops=crops, device=device, autocast=autocast
    )
    ours = _Ours("swav", _swav_options(setting), setting, [*items, *volumes], device, autocast)
    joint = _Ours("joint", _joint_options(setting), setting, [*items, *volumes], device, autocast)
    trunk = _network(setting).to(device).train()
    lay_out(trunk, channels_last=True)
    # The trunk sees what it sees in a joint step: two views of every slice, as a batch.
    seen = torch.rand(2 * setting.volumes * STACK, 1, setting.size, setting.size, device=device)

    def of_batch(number: int) -> list[NDArray[np.uint8]]:
        first = number * setting.batch_size
        return [pictures[place % len(pictures)] for place in range(first, first + setting.batch_size)]

    loaded, views = released.load(of_batch(0)), ours.load(0, are_volumes=False)
    stacks = joint.load(0, are_volumes=True)

    def trunk_step(_: int) -> None:
        with autocast():
            maps = trunk(seen)
        torch.autograd.backward(torch.stack([level.float().mean() for level in maps]).sum())

    return {
        RELEASED: (lambda number: released.step(released.load(of_batch(number))), RELEASED),
        "loading alone, as released": (lambda number: released.load(of_batch(number)), RELEASED),
        "SwAV here, loading and step": (lambda number: ours.step(ours.load(number, are_volumes=False)), RELEASED),
        "loading alone, here": (lambda number: ours.load(number, are_volumes=False), RELEASED),
        RELEASED_STEP: (lambda _: released.step(loaded), RELEASED_STEP),
        "SwAV here, step alone": (lambda _: ours.step(views), RELEASED_STEP),
        TRUNK: (trunk_step, TRUNK),
        "joint step with volumes, loading and step": (
            lambda number: joint.step(joint.load(number, are_volumes=True)),
            TRUNK,
        ),
        "joint step with volumes, step alone": (lambda _: joint.step(stacks), TRUNK),
    }


def _network(setting: Setting) -> resnet.ResNet:
    return resnet.ResNet(1, setting.depth, setting.width, nn.Conv2d, nn.BatchNorm2d)


def _swav_options(setting: Setting) -> dict[str, Any]:
    views = {"num_local": setting.num_local, "local_size": setting.local_size}
    return {"num_prototypes": 24, "hidden_dim": 512, "freeze_steps": 0, "views": views}


def _joint_options(setting: Setting) -> dict[str, Any]:
    stacks = {"batch_size": setting.volumes, "max_slices": STACK, "keep": 1.0, "norms": "train"}
    few = {"num_prototypes": 24, "freeze_steps": 0}
    return {"stage": "joint", "stacks": stacks, "swapped": {"images": few, "volumes": few}}


class _Ours:
    """What `medssl pretrain` does in a step, without its loop."""

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        setting: Setting,
        items: list[PreparedItem],
        device: str,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        module = plugins.load("method", name)
        size = (setting.size, setting.size, 1)
        self.method: MethodBase = module.Method(_network(setting), module.Options(**options), size).to(device).train()
        lay_out(self.method, channels_last=True)
        self.device, self.setting, self.autocast = torch.device(device), setting, autocast
        request = self.method.views().slices
        assert request is not None
        are_volumes = [item.shape[2] > 1 for item in items]
        index = ImageIndex(are_volumes, ["all"] * len(items), per_volume=8, balance=1.0, seed=0)
        groups = [torch.from_numpy(part) for part in (index.image_groups, index.volume_groups)]
        self.method.begin(TrainingSet(groups[0], groups[1], 1000))
        plan = StepPlan(setting.batch_size, setting.volumes, 2)
        self._data = SliceDataset(items, index, plan, max_slices=STACK, seed=0)
        self.optimizer = build_optimizer(
            self.method, Optimizer(name="lars", learning_rate=0.1, momentum=0.9, weight_decay=1e-6)
        )

    def load(self, number: int, *, are_volumes: bool) -> Views:
        """A batch on the device."""
        step, size = 2 * number + are_volumes, self.setting.volumes if are_volumes else self.setting.batch_size
        batch = collate([self._data[step, slot] for slot in range(size)])
        place: Callable[[Tensor], Tensor] = lambda part: part.to(self.device)  # noqa: E731
        known = Slices(place(batch.places), place(batch.is_present), place(batch.positions_mm), batch.are_volumes)
        draws = Draws(torch.Generator().manual_seed(number))
        return make_views(self.method.views(), place(batch.images), draws, slices=known)

    def step(self, views: Views) -> float:
        """One step; returns the loss."""
        self.method.before_step(0.5)
        with self.autocast():
            total = self.method.loss(views, 0.5).total
        torch.autograd.backward(total)
        self.method.after_backward(0.5)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total.detach())


def _pictures(
    folder: Path, shape: tuple[int, int, int], number: int, canvas: int
) -> tuple[list[NDArray[np.uint8]], list[PreparedItem]]:
    """Smooth random images, as arrays, and as a cache prepares them: fitted to a square."""
    rng = np.random.default_rng(sum(shape))
    ramp = np.add.outer(np.linspace(0, 120, shape[0]), np.linspace(0, 100, shape[1]))[..., None]
    pictures, items = [], []
    for index in range(number):
        voxels = (ramp + rng.integers(0, 30, shape)).astype(np.uint8)
        path = folder / f"{shape[2]}-{index}.b2nd"
        fitted = resize(voxels[None], (canvas, canvas, shape[2]))[0]
        write_array(path, fitted)
        rule = Intensity(0, 255, 110, 1 / 60)
        items.append(PreparedItem(path.stem, fitted.shape, np.eye(4), rule, path, None, {}))
        pictures.append(voxels[..., 0])
    return pictures, items


def _timed(work: Work, number: int, device: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    wall, cpu = perf_counter(), process_time()
    work(number)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return perf_counter() - wall, process_time() - cpu
