"""MLflow and Weights & Biases, on request. Neither talks to a network unless the user has configured one."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.metrics_log import Sink

NAMES: Final = ("mlflow", "wandb")
PROJECT: Final = "medssl"


def open_sink(name: str, root: Path, recipe: Mapping[str, Any], *, is_configured: bool) -> Sink:
    """A logger by name.

    Args:
        name: `mlflow` or `wandb`.
        root: Run folder; numbers stay there unless a server is configured.
        recipe: Recorded with the numbers.
        is_configured: Whether the user's environment names a server for this logger.

    Raises:
        UsageError: `E_EXTRA_MISSING`, or `E_USAGE` for another name.
    """
    if name not in NAMES:
        raise UsageError("E_USAGE", f"--log {name} is not one of {', '.join(NAMES)}")
    if importlib.util.find_spec(name) is None:
        raise UsageError(
            "E_EXTRA_MISSING", f"--log {name} needs the package {name}", hint=f"pip install 'medssl[{name}]'"
        )
    opened: Sink = (MlflowSink if name == "mlflow" else WandbSink)(root, recipe, is_configured=is_configured)
    return opened


class MlflowSink:
    """An MLflow run; a resumed training goes on with the same one. Without a server it lies in `RUN/mlflow`."""

    def __init__(self, root: Path, recipe: Mapping[str, Any], *, is_configured: bool) -> None:
        mlflow = importlib.import_module("mlflow")
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        where = None if is_configured else f"sqlite:///{(root / 'mlflow.db').resolve()}"
        self._client = mlflow.MlflowClient(tracking_uri=where)
        experiment = self._client.get_experiment_by_name(PROJECT)
        identifier = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        filter_string = f"tags.medssl_run = '{root.resolve().name}'"
        known = self._client.search_runs([identifier], filter_string=filter_string, max_results=1)
        if known:
            self._run_id = known[0].info.run_id
            return
        run = self._client.create_run(identifier, run_name=root.name, tags={"medssl_run": root.resolve().name})
        self._run_id = run.info.run_id
        for key, value in flat(recipe).items():
            self._client.log_param(self._run_id, key, str(value)[:500])

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record finite numbers of one step."""
        for name, value in values.items():
            self._client.log_metric(self._run_id, name, value, step=step)

    def close(self) -> None:
        """Mark the run as over; the next session opens it again."""
        self._client.set_terminated(self._run_id)


class WandbSink:
    """A Weights & Biases run; a resumed training goes on with the same one. Offline unless configured."""

    def __init__(self, root: Path, recipe: Mapping[str, Any], *, is_configured: bool) -> None:
        wandb = importlib.import_module("wandb")
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._run = wandb.init(
            project=PROJECT,
            name=root.name,
            id=root.resolve().name,
            resume="allow",
            dir=str(root),
            config=dict(recipe),
            mode=None if is_configured else "offline",
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record finite numbers of one step."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Flush and end."""
        self._run.finish()


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b: value`."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
