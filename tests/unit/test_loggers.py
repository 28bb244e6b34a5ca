"""MLflow and Weights & Biases: on request, offline unless configured, one run per training, and missing packages."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.training_logs import open_sinks
from medssl_cli.engine.loggers import flat, open_sink
from medssl_cli.engine.metrics_log import MetricsLog
from medssl_cli.recipe import PretrainRecipe, find_recipe, load_recipe


class FakeWandb(types.ModuleType):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.util.spec_from_loader("wandb", loader=None)
        self.opened: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.num_finished = 0

    def init(self, **options: Any) -> "FakeWandb":
        self.opened.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.num_finished += 1


@pytest.fixture
def recipe() -> PretrainRecipe:
    loaded = load_recipe(find_recipe("voco-tiny"))
    assert isinstance(loaded, PretrainRecipe)
    return loaded


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_finite_numbers_and_stays_offline(wandb: FakeWandb, recipe: PretrainRecipe, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume_step=0, sinks=open_sinks(["wandb", "wandb"], tmp_path, recipe))
    log.write(3, {"loss": 0.5, "bad": float("nan")})
    log.close()

    (options,) = wandb.opened
    assert options["mode"] == "offline"
    assert options["id"] == tmp_path.name
    assert options["resume"] == "allow"
    assert options["config"]["steps"] == recipe.steps
    assert wandb.logged == [(3, {"loss": 0.5})]
    assert wandb.num_finished == 1


def test_wandb_that_the_user_configured_is_left_alone(
    wandb: FakeWandb, recipe: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")

    open_sinks(["wandb"], tmp_path, recipe)

    assert wandb.opened[0]["mode"] is None


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_the_way_to_install_it(
    name: str, recipe: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else plain(wanted))

    with pytest.raises(UsageError, match="E_EXTRA_MISSING") as caught:
        open_sinks([name], tmp_path, recipe)

    assert caught.value.hint == f"pip install 'medssl[{name}]'"


def test_another_name_is_refused(recipe: PretrainRecipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E_USAGE"):
        open_sinks(["comet"], tmp_path, recipe)


def test_settings_are_flattened() -> None:
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_one_run_in_the_run_folder(
    recipe: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "run"
    for step in (1, 2):  # the second session resumes the first
        log = MetricsLog(tmp_path, resume_step=0, sinks=open_sinks(["mlflow"], root, recipe))
        log.write(step, {"loss": 1.0 / step})
        log.close()

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("medssl")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["optimizer.learning_rate"] == str(recipe.optimizer.learning_rate)
    assert [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 1.0),
        (2, 0.5),
    ]
    assert not (Path.cwd() / "mlruns").exists()


def test_a_configured_mlflow_server_is_used(
    recipe: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    class Client:
        def __init__(self, tracking_uri: str | None) -> None:
            asked.append(tracking_uri)
            raise ConnectionError

    fake = types.ModuleType("mlflow")
    fake.__spec__ = importlib.util.spec_from_loader("mlflow", loader=None)
    fake.MlflowClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)

    for is_configured in (True, False):
        with pytest.raises(ConnectionError):
            open_sink("mlflow", tmp_path, {}, is_configured=is_configured)

    assert asked[0] is None  # MLflow reads the address itself
    assert str(asked[1]).startswith("sqlite:///")
