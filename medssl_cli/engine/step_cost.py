"""What a step of a training takes on the device at hand: tried, in a child process that may run out of memory.

A few steps of the real training are made, on some of its images: reading, random changes, network, loss, optimiser.
Where images take part without labels, the same images stand for them, and the teacher is there too.
"""

import contextlib
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from medssl_cli.base.errors import MedsslError
from medssl_cli.base.memory import lacks_memory
from medssl_cli.base.talk import Silence
from medssl_cli.cache.items import ItemRecord
from medssl_cli.recipe import TaskRecipe, dump_recipe, validate_recipe
from medssl_cli.work.child import die_with_parent, limit_data
from medssl_cli.work.workers import DYING_S, end_child, start_child

NUM_STEPS: Final = 4
"""The first starts everything, and after the last one the network is looked at."""
NEVER: Final = 10**9
TIMEOUT_S: Final = 600.0
PARALLEL: Final = 0.85
"""Share of a step on a CPU that several threads do together (Amdahl's law)."""
ROOM: Final = 1.5
"""A trial may take so many times the memory that a plan may; what takes more ends it."""


@dataclass(frozen=True)
class StepCost:
    """What a step takes.

    Args:
        step_s: Seconds. On CPUs those that one thread has computed, less what several threads save: other work on the
            same computer does not count, so that the same images give the same plan.
        memory_bytes: Peak of the process, or of the CUDA device.
    """

    step_s: float
    memory_bytes: int


class StepClock(Silence):
    """Seconds of each step, heard from the progress of a training.

    Args:
        device: `cpu` or `cuda:0`.
    """

    def __init__(self, device: str) -> None:
        self._is_cpu = device == "cpu"
        self._times: list[float] = []

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        """A step is over."""
        self._times.append(time.process_time() if self._is_cpu else time.perf_counter())

    def step_s(self, num_threads: int) -> float:
        """The shortest step, of those that had one before them.

        Args:
            num_threads: Number of threads of the training; what was heard had one.
        """
        shortest = min(after - before for before, after in pairwise(self._times))
        return shortest * (1 - PARALLEL + PARALLEL / num_threads) if self._is_cpu else shortest


class StepMeter:
    """A child process that tries recipes, one after another.

    Args:
        cache_root: Root of the cache.
        records: Some training images.
        device: Resolved: `cpu`, `cuda:0`.
        memory_bytes: That a plan may take.
    """

    def __init__(self, cache_root: Path, records: Sequence[ItemRecord], *, device: str, memory_bytes: float) -> None:
        self._told = {
            "cache": str(cache_root.absolute()),
            "items": [record.item_id for record in records],
            "device": device,
            "memory_bytes": int(min(memory_bytes, 2.0**60)),
        }
        self._child: tuple[Any, Connection] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def measure(self, recipe: TaskRecipe) -> StepCost | None:
        """What a step of a recipe takes; None if it needs more memory than there is, or takes minutes.

        Raises:
            MedsslError: The recipe cannot be trained on the images.
        """
        if self._child is None:
            self._child = start_child("medssl_cli.engine.step_cost")
        process, pipe = self._child
        try:
            pipe.send_bytes(json.dumps({**self._told, "recipe": dump_recipe(recipe)}).encode())
            answer = json.loads(pipe.recv_bytes()) if pipe.poll(TIMEOUT_S) else None
        except (EOFError, OSError):
            end_child(process, grace_s=DYING_S)
            answer = None
        if answer is None:
            self._end()
            return None
        if "code" in answer:
            raise MedsslError(answer["code"], answer["message"], hint=answer["hint"])
        return StepCost(answer["step_s"], answer["memory_bytes"])

    def _end(self) -> None:
        if self._child is not None:
            process, pipe = self._child
            pipe.close()
            end_child(process)
            self._child = None


def serve(descriptor: int, parent: int) -> None:
    """Try one recipe after another until the socket closes.

    Args:
        descriptor: Descriptor of a socket whose other end is the parent's.
        parent: Process number of the parent.
    """
    die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import medssl_cli.engine.finetune  # noqa: F401 - what it loads is no memory of a step

    pipe = Connection(descriptor)
    is_limited = False
    with contextlib.suppress(EOFError, OSError):
        while True:
            told = json.loads(pipe.recv_bytes())
            if not is_limited and told["device"] == "cpu":
                limit_data(int(ROOM * told["memory_bytes"]))
                is_limited = True
            pipe.send_bytes(json.dumps(_tried(told)).encode())


def _tried(told: dict[str, Any]) -> dict[str, Any] | None:
    """What a step takes, or an error; None where memory is short."""
    recipe = validate_recipe(told["recipe"], source="the plan")
    assert isinstance(recipe, TaskRecipe)
    try:
        found = try_steps(recipe, Path(told["cache"]), told["items"], told["device"])
    except MedsslError as error:
        return {"code": error.code, "message": error.message, "hint": error.hint}
    except (MemoryError, RuntimeError) as error:
        if lacks_memory(error):
            return None
        raise
    return {"step_s": found.step_s, "memory_bytes": found.memory_bytes}


def try_steps(recipe: TaskRecipe, cache_root: Path, item_ids: Sequence[str], device: str) -> StepCost:
    """Make a few steps of a recipe in this process.

    Args:
        recipe: Recipe of a task.
        cache_root: Root of the cache.
        item_ids: Images to learn from.
        device: `cpu` or `cuda:0`.

    Raises:
        MedsslError: The recipe cannot be trained on the images.
    """
    import torch

    from medssl_cli.cache.store import Cache
    from medssl_cli.engine.build import build_task
    from medssl_cli.engine.devices import make_fabric
    from medssl_cli.engine.live_page import Outlets
    from medssl_cli.engine.processes import launched
    from medssl_cli.engine.runs import Manifest, start_run
    from medssl_cli.engine.trainer import Trainer
    from medssl_cli.engine.unlabelled_images import without_second_average
    from medssl_cli.tasks import supervision_of

    num_threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)  # several would count the time that they wait for each other
    short = {"steps": NUM_STEPS, "validate_every": NEVER, "checkpoint_every": NEVER, "accumulate": 1, "compile": False}
    cache, silence = Cache.open(cache_root), Silence()
    recipe = without_second_average(recipe.model_copy(update=short), silence)
    records = [cache.record(item_id) for item_id in item_ids]
    supervision = supervision_of(recipe)
    _forget_peak(device)
    with launched(make_fabric(device, recipe.precision)) as processes, tempfile.TemporaryDirectory() as folder:
        task = build_task(recipe)
        dataset = supervision.dataset(cache, records, silence)
        supervision.begin(task, dataset)
        run = start_run(Path(folder) / "trial", "finetune", recipe, Manifest({"train": records, "val": []}, {}))
        goal = _goal(recipe, cache, records, (run, task, supervision, dataset, processes))
        clock = StepClock(device)
        Trainer(recipe, run, goal, processes, clock, outlets=Outlets(), max_minutes=None, profile_steps=0).train()
        torch.set_num_threads(num_threads)
        return StepCost(clock.step_s(num_threads), _peak(device))


def _goal(recipe: TaskRecipe, cache: Any, records: Sequence[ItemRecord], parts: tuple[Any, ...]) -> Any:
    """What a trial trains: the task, from labels alone or with images without them beside."""
    from medssl_cli.engine.finetuning import Finetuning
    from medssl_cli.engine.unlabelled_finetuning import UnlabelledFinetuning
    from medssl_cli.engine.unlabelled_images import unlabelled_dataset
    from medssl_cli.tasks import Validation
    from medssl_cli.unlabelled import learning_unlabelled

    run, task, supervision, dataset, processes = parts
    common = (recipe, run, task, supervision, dataset, lambda _: Validation(math.nan), processes, Silence())
    if recipe.unlabelled is None:
        return Finetuning(*common, max_minutes=None)
    learning, tried = learning_unlabelled(supervision), {record.item_id for record in records}
    found = [each for each in learning.unlabelled(cache, Silence()) if each.first.item_id in tried]
    others = unlabelled_dataset(recipe, cache, found, supervision, Silence(), beside=dataset)
    return UnlabelledFinetuning(*common, others=others, shares=learning.class_shares(cache, records), max_minutes=None)


def _forget_peak(device: str) -> None:
    """Let the peak of memory begin with what is held now."""
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)


def _peak(device: str) -> int:
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_reserved(device))
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_at_hand(device: str) -> float:
    """What a plan may take where nobody says: half of a computer's memory, most of a CUDA device's."""
    if device != "cpu":
        import torch

        return 0.85 * torch.cuda.get_device_properties(device).total_memory
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
