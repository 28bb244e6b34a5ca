"""What `medssl infer` takes from its start until its model is loaded, and until the network is given the first tile.

`python -m tests.bench.first_tile FILE infer ...` runs a command of medssl until then, and writes both to a file.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

COLUMNS: Final = ("until", "s", "CPU s", "of them in the model's process, and in readers")
NAMES: Final = ("model is loaded", "first tile")
_TIMES, _STARTED = slice(11, 15), 19
"""Fields of `/proc/PID/stat` behind the command's name (proc(5)): its times with those of ended children; its start."""


@dataclass(frozen=True)
class Moment:
    """What a command has taken so far.

    Args:
        name: What happens then.
        wall_s: Seconds since its process was started.
        cpu_s: User and system time of all its processes.
        others_cpu_s: The part of it that its other processes took.
    """

    name: str
    wall_s: float
    cpu_s: float
    others_cpu_s: float

    def row(self) -> tuple[str, ...]:
        """For a table."""
        return self.name, f"{self.wall_s:.2f}", f"{self.cpu_s:.2f}", f"{self.others_cpu_s:.2f}"


def bench_first_tile(arguments: Sequence[Any], scratch: Path) -> list[Moment]:
    """Run a command twice, and tell of the second time: an installation has its bytecode, and a server its page cache.

    Args:
        arguments: `infer` and what follows it.
        scratch: A folder for what is written meanwhile.
    """
    target = scratch / "moments.json"
    command = [sys.executable, "-m", "tests.bench.first_tile", str(target), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(scratch / "bytecode")}
    for _ in range(2):
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return [Moment(**each) for each in json.loads(target.read_text())]


def run_until_first_tile(target: Path, arguments: Sequence[str]) -> None:
    """Run a command of medssl in this process, write the moments, and end where the first tile would be computed."""
    from medssl_cli.cli.start import main
    from medssl_cli.deploy.model_process import ModelProcess

    moments: list[Moment] = []
    loaded = ModelProcess.loaded

    def loaded_then_told(self: ModelProcess, **how: Any) -> dict[str, Any]:
        answer = loaded(self, **how)
        moments.append(_now(NAMES[0]))
        return answer

    def told(self: ModelProcess, *_: Any, **__: Any) -> Any:
        moments.append(_now(NAMES[1]))
        target.write_text(json.dumps([asdict(each) for each in moments]))
        self.close()
        os._exit(0)

    ModelProcess.loaded, ModelProcess.compute = loaded_then_told, told  # type: ignore[method-assign]
    sys.argv = ["medssl", *arguments]
    main()


def _now(name: str) -> Moment:
    """What this process and its children have taken so far; those that have ended count, too."""
    ticks, own = os.sysconf("SC_CLK_TCK"), _fields(os.getpid())
    times = os.times()
    others = times.children_user + times.children_system
    for child in _children():
        others += sum(map(int, _fields(child)[_TIMES])) / ticks
    wall_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(own[_STARTED]) / ticks
    return Moment(name, wall_s, time.process_time() + others, others)


def _children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _fields(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


if __name__ == "__main__":
    run_until_first_tile(Path(sys.argv[1]), sys.argv[2:])
