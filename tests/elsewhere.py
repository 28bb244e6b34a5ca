"""What stands for a cluster in tests: tasks travel as bytes and are done one after another, by this process."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

from medssl_cli.work.workers import Outcome


class ElsewhereTasks:
    """The interface of a cluster, `work.workers.TaskMap`."""

    def __enter__(self) -> "ElsewhereTasks":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to leave."""

    def map(
        self, function: Any, tasks: Any, *, should_stop: Callable[[], bool] = lambda: False, **_: object
    ) -> Iterator[Outcome[Any, Any]]:
        for task in tasks:
            if should_stop():
                return
            yield Outcome(task, function(pickle.loads(pickle.dumps(task))))
