"""Queries per second of VoCo pre-training: the released step, ours, and what each change between them gives.

All steps run in one process, in turn, on the same canvases in memory; what a data loader delivers is measured apart.
A query is a random crop: what the loss learns from. Base crops are only its ruler.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor

from medssl_cli.base import plugins
from medssl_cli.cache.arrays import write_array
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.crops import CropDataset, crop_loader
from medssl_cli.data.views import make_views
from medssl_cli.engine.devices import resolve_device, tune_process
from medssl_cli.engine.optimisation import build_optimizer
from medssl_cli.imaging.preprocessing import Intensity
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.backbones.swinunetr import WINDOW, build
from medssl_cli.recipe import Optimizer
from tests.bench.published_voco import NUM_QUERIES, V1, V2, PublishedStep, Size
from tests.bench.synthetic import synthetic_ct

COLUMNS: Final = ("step", "queries", "s/step", "CPU s/query", "queries/s, ratio", "queries per CPU s, ratio")
LOADER_COLUMNS: Final = ("loader", "canvases/s", "of what the last step takes")
OUR_QUERIES: Final = 8
WINDOW_HU: Final = Intensity(-175, 250, -175, 1 / 425)
WORKERS: Final = (0, 2)


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Args:
        feature_size: Of the SwinUNETR encoder; 48 is the published size B.
        crop_size: Voxels (x, y, z); 64 along each axis are published.
        batch_size: Volumes.
    """

    feature_size: int
    crop_size: Size
    batch_size: int = 2


SETTINGS: Final = {"small": Setting(12, (32, 32, 64)), "full": Setting(48, (64, 64, 64))}


@dataclass(frozen=True)
class StepTime:
    """Medians of one kind of step.

    Args:
        name: What is different from the line before.
        queries: Random crops in a step.
        wall_s: Of a step.
        cpu_s: Of a step, all threads.
    """

    name: str
    queries: int
    wall_s: float
    cpu_s: float

    def row(self, reference: "StepTime") -> tuple[str, ...]:
        """For a table."""
        rate, cpu_rate = self.ratios(reference)
        per_query = self.cpu_s / self.queries
        return (
            self.name,
            str(self.queries),
            f"{self.wall_s:.3f}",
            f"{per_query:.3f}",
            f"{rate:.2f}",
            f"{cpu_rate:.2f}",
        )

    def ratios(self, reference: "StepTime") -> tuple[float, float]:
        """Queries per second, and per CPU second, over those of another."""
        more = self.queries / reference.queries
        return more * reference.wall_s / self.wall_s, more * reference.cpu_s / self.cpu_s


@dataclass(frozen=True)
class PretrainBenchmark:
    """All lines; ratios are to the released `v2` step."""

    device: str
    num_threads: int
    steps: tuple[StepTime, ...]
    canvases_per_s: dict[int, float]
    batch_size: int

    @property
    def _reference(self) -> StepTime:
        return next(step for step in self.steps if step.name == RELEASED_V2)

    def rows(self) -> list[tuple[str, ...]]:
        """For a table."""
        return [step.row(self._reference) for step in self.steps]

    def loader_rows(self) -> list[tuple[str, ...]]:
        """For a table of what the loader delivers."""
        taken = self.batch_size / self.steps[-1].wall_s
        return [
            (f"{workers} workers", f"{rate:.1f}", f"{rate / taken:.1f}")
            for workers, rate in self.canvases_per_s.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, with ratios."""
        names = ("queries_per_s_ratio", "queries_per_cpu_s_ratio")
        steps = [asdict(step) | dict(zip(names, step.ratios(self._reference), strict=True)) for step in self.steps]
        return asdict(self) | {"steps": steps}


RELEASED_V1: Final = "released v1"
RELEASED_V2: Final = "released v2"
Step = Callable[[Tensor, int], object]


def bench_pretrain(
    setting: Setting, *, device: str = "cpu", rounds: int = 3, volumes: int = 8, num_batches: int = 20
) -> PretrainBenchmark:
    """Time every kind of step in turn, then the loader.

    Args:
        setting: Network, crops and batch.
        device: As for `medssl pretrain`.
        rounds: Steps of each kind; the first uses memory for the first time.
        volumes: Synthetic images that the loader draws from.
        num_batches: That it delivers.

    Raises:
        UsageError: `E_DEVICE`.
    """
    resolved = resolve_device(device)
    tune_process()
    contenders = dict(_contenders(setting, resolved))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, (_, size, step) in contenders.items():
            canvases = _canvases(setting.batch_size, size, seed=number)
            times[name].append(_timed(step, canvases, number, resolved))
    steps = tuple(
        StepTime(name, queries * setting.batch_size, *(median(column) for column in zip(*times[name], strict=True)))
        for name, (queries, _, _) in contenders.items()
    )
    grid = (V2.grid * setting.crop_size[0], V2.grid * setting.crop_size[1], setting.crop_size[2])
    delivered = _loader_rates(grid, setting.batch_size, volumes, num_batches)
    return PretrainBenchmark(resolved, torch.get_num_threads(), steps, delivered, setting.batch_size)


def _contenders(setting: Setting, device: str) -> Iterator[tuple[str, tuple[int, Size, Step]]]:
    """Name, queries per volume, canvas and step of each."""
    cell_v1 = (setting.crop_size[0] * 3 // 2, setting.crop_size[1] * 3 // 2, setting.crop_size[2] * 3 // 2)
    for name, form, cell in ((RELEASED_V1, V1, cell_v1), (RELEASED_V2, V2, setting.crop_size)):
        network = released_network(setting.feature_size, use_checkpoint=True)
        released = PublishedStep(network, form, cell=cell, crop_size=setting.crop_size, device=device)
        yield name, (NUM_QUERIES, released.canvas_size, released.step)
    networks: list[tuple[str, int, Backbone]] = [
        ("our step, network as released", NUM_QUERIES, released_network(setting.feature_size, use_checkpoint=True)),
        ("+ activations kept", NUM_QUERIES, released_network(setting.feature_size, use_checkpoint=False)),
        ("+ attention in chunks", NUM_QUERIES, build(1, feature_size=setting.feature_size)),
        (f"+ {OUR_QUERIES} queries per volume", OUR_QUERIES, build(1, feature_size=setting.feature_size)),
    ]
    for name, queries, network in networks:
        ours = OurStep(network, queries, setting.crop_size, device)
        yield name, (queries, ours.method.views().size, ours.step)


def released_network(feature_size: int, *, use_checkpoint: bool) -> Backbone:
    """Our encoder with MONAI's own attention."""
    network = build(1, feature_size=feature_size, use_checkpoint=use_checkpoint)
    network.swinViT = SwinTransformer(
        in_chans=1,
        embed_dim=feature_size,
        window_size=(WINDOW,) * 3,
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
        use_checkpoint=use_checkpoint,
        use_v2=True,
    )
    return network


class OurStep:
    """What `medssl pretrain` does in a step, without its loop.

    Args:
        network: The encoder.
        num_queries: Random crops per volume.
        crop_size: Voxels (x, y, z).
        device: Where; CUDA computes in bf16.
    """

    def __init__(self, network: Backbone, num_queries: int, crop_size: Size, device: str) -> None:
        module = plugins.load("method", "voco")
        options = module.Options(objective="v2", base_grid=(V2.grid, V2.grid, 1), num_random_crops=num_queries)
        self.method = module.Method(network, options, crop_size).to(device)
        self.device = torch.device(device)
        self.optimizer = build_optimizer(self.method, Optimizer(name="adamw", learning_rate=1e-4, weight_decay=0.01))

    def step(self, canvases: Tensor, number: int) -> None:
        """One optimiser step on canvases [B, 1, X, Y, Z]."""
        self.method.before_step(0.0)
        views = make_views(self.method.views(), canvases.to(self.device), Draws(torch.Generator().manual_seed(number)))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            losses = self.method.loss(views, 0.0)
        torch.autograd.backward(losses.total)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(0.0)


def _canvases(count: int, size: Size, *, seed: int) -> Tensor:
    volumes = [WINDOW_HU.apply(synthetic_ct(size, seed=seed * count + index))[None] for index in range(count)]
    return torch.from_numpy(np.stack(volumes))


def _timed(step: Step, canvases: Tensor, number: int, device: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    step(canvases, number)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def _loader_rates(canvas: Size, batch_size: int, volumes: int, num_batches: int) -> dict[int, float]:
    """Canvases per second by number of workers, from prepared images half as large again; starting is not counted."""
    x, y, z = (length * 3 // 2 for length in canvas)
    with tempfile.TemporaryDirectory(prefix="medssl-bench-") as scratch:
        items = []
        for index in range(volumes):
            path = Path(scratch) / f"{index}.b2nd"
            write_array(path, synthetic_ct((x, y, z), seed=index))
            items.append(PreparedItem(str(index), (x, y, z), np.eye(4), WINDOW_HU, path, None, {}))
        dataset = CropDataset(items, canvas, batch_size=batch_size, seed=0, pad_with_low=True)
        rates = {}
        for workers in WORKERS:
            loader = crop_loader(
                dataset, first_step=0, num_steps=num_batches + 1, batch_size=batch_size, num_workers=workers
            )
            batches = iter(loader)
            next(batches)
            started = time.perf_counter()
            delivered = sum(len(batch.images) for batch in batches)
            rates[workers] = delivered / (time.perf_counter() - started)
    return rates
