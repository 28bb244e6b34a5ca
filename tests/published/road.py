"""The road of a published data set: ingest, a task of two steps, scores, a model, and its answer."""

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pytest
from torch import nn

from medssl_cli.base.talk import Silence
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.deploy import export as exporting
from medssl_cli.deploy.bundle import Precision
from medssl_cli.deploy.export import onnx_graph
from medssl_cli.engine.planning import plan_task, science_of
from medssl_cli.engine.step_cost import StepCost
from medssl_cli.heads import Port
from medssl_cli.ingest import ingest as ingesting
from medssl_cli.recipe import TaskRecipe, find_recipe, load_recipe, raw_recipe
from medssl_cli.work.workers import Outcome
from tests.command import medssl
from tests.published.files import Published, Wanted

Task = TypeVar("Task")
Result = TypeVar("Result")
FAST = ("precision=fp32", "steps=2", "validate_every=2", "data.num_workers=0", "schedule.warmup_steps=1",
        "inference.overlap=0", "data.batch_size=2", "crops_per_image=1", "ema_decay=0",
        "optimizer.learning_rate=1.0e-9")  # fmt: skip
TINY = "backbone={name: unet, channels: [2, 4], strides: [1, 2], num_res_units: 1}"
FLAT = "backbone={name: unet, spatial_dims: 2, channels: [2, 4], strides: [1, 2], num_res_units: 1}"
OF_BOXES = "backbone={name: unet, spatial_dims: 2, channels: [2, 4, 4], strides: [1, 2, 2], num_res_units: 1}"


_graphs: dict[str, bytes] = {}


class InThisProcess:
    """What child processes do, one task after the other and without them."""

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Outcome[Task, Result], None, None]:
        """See `TaskMap.map`."""
        for task in tasks:
            yield Outcome(task, function(task))


def done(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    """What a command says with `--json`, if it ends as it should."""
    found = medssl(*arguments, "--json")
    assert found.exit_code == exit_code, f"{arguments[0]}: {found.stderr}{_refused(found.stdout)} {found.exception!r}"
    answer: dict[str, Any] = json.loads(found.stdout)
    return answer


def _refused(stdout: str) -> str:
    """What a report says of files that were refused."""
    entries = json.loads(stdout or "{}").get("items", [])
    return "\n".join(f"{entry['code']} {entry.get('message')}" for entry in entries if entry["state"] == "quarantined")


def children(*_: object) -> AbstractContextManager[InThisProcess]:
    """Stands for the children of an ingest."""
    return nullcontext(InThisProcess())


def traced_once(network: nn.Module, inputs: Sequence[Port], outputs: Sequence[Port], precision: Precision) -> bytes:
    """What `onnx_graph` gives, of networks without running statistics that of the first that is equal.

    Tracing takes most of the time of an export. Networks of one seed that hardly learn have the same weights; whether
    they have, the gate says.
    """
    has_statistics = any(name.endswith("running_mean") for name in network.state_dict())
    key = f"{network} {inputs} {outputs} {precision}"
    if has_statistics or key not in _graphs:
        _graphs[key] = onnx_graph(network, inputs, outputs, precision)
    return _graphs[key]


def _cheap(recipe: TaskRecipe) -> StepCost:
    """What any step takes."""
    return StepCost(step_s=0.01, memory_bytes=10**8)


class Road:
    """A data set on its way.

    Args:
        made: The fake.
        root: Where everything is written.
    """

    def __init__(self, made: Published, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.root = made, root
        self.cache, self.run, self.model = root / "cache", root / "run", root / "model.onnx"
        monkeypatch.setattr(ingesting, "_workers", children)
        monkeypatch.setattr(exporting, "onnx_graph", traced_once)
        self._where = ("--cache", self.cache)

    def ingest(self) -> dict[str, list[dict[str, Any]]]:
        """Entries of the report by the place of their first file."""
        paths, said = self.root / "map.json", self.made
        report = done(
            "ingest", said.folder, *said.options, *self._where, "--private-map", paths, exit_code=said.exit_code
        )
        places = json.loads(paths.read_text())
        entries: dict[str, list[dict[str, Any]]] = {}
        for entry in report["items"]:
            for place in places[entry["id"]]:
                entries.setdefault(Path(place).relative_to(said.folder.resolve()).as_posix(), []).append(entry)
        return entries

    def check(self, entries: dict[str, list[dict[str, Any]]]) -> None:
        """Compare what is in the cache with what should be."""
        records = {record.item_id: record for record in Cache.open(self.cache).records()}
        persons: dict[str, set[str]] = {}
        for place, wanted in self.made.images.items():
            found = [records[entry["item"]] for entry in entries[place] if entry.get("item")]
            channels = sorted(str(record.channel) for record in found)
            assert (place, channels) == (place, str(wanted.channel).split())
            for record in found:
                assert (place, _described(record, wanted)) == (place, wanted)
                persons.setdefault(record.patient_key, set()).add(wanted.patient)
        assert all(len(names) == 1 for names in persons.values()), persons
        assert len(persons) == len({wanted.patient for wanted in self.made.images.values()})
        for place, code in self.made.codes.items():
            assert [entry["code"] for entry in entries[place]] == [code], place

    def plan(self) -> None:
        """A plan for the same classes and images, as `medssl plan --task` makes it, but for the trials of steps.

        Of so few findings the split by rule may leave some without a case; their plans are tested elsewhere.
        """
        classes = [setting for setting in self.made.settings if setting.startswith("task.classes")]
        document = science_of(raw_recipe(find_recipe(self.made.recipe, ("tasks",)), classes))
        if document["task"]["name"] == "segmentation":
            found = plan_task(document, Cache.open(self.cache), device="cpu", talk=Silence(), minutes=1, measure=_cheap)
            assert found.recipe.task.options["classes"] == document["task"]["classes"]

    def finetune(self) -> None:
        """Two steps with the recipe's own preprocessing and a network of a few numbers."""
        given = [f"--set={setting}" for setting in (*FAST, *self._small(), *self.made.settings)]
        done("finetune", "--task", self.made.recipe, *self._where, "--run", self.run, "--device", "cpu",
             *self.made.split, *given)  # fmt: skip

    def _small(self) -> list[str]:
        recipe = load_recipe(find_recipe(self.made.recipe, ("tasks",)))
        assert isinstance(recipe, TaskRecipe)
        is_flat = recipe.backbone.name == "resnet"
        depth = 1 if recipe.data.crop_size[2] == 1 else 8
        fitted = ["data.fit=[16, 16]"] if recipe.data.fit is not None else []
        network = OF_BOXES if recipe.task.name == "detection" and depth == 1 else FLAT if is_flat else TINY
        return [network, f"data.crop_size=[16, 16, {depth}]", *fitted]

    def evaluate(self, model: Path | None = None) -> dict[str, Any]:
        """Scores of the test patients."""
        out = self.root / "scores"
        return done("evaluate", model or self.run, *self._where, "--out", out, "--device", "cpu", "--pictures", 0,
                    "--split", self.made.scored)  # fmt: skip

    def export(self) -> dict[str, Any]:
        """One file of the run, proven on one case."""
        return done("export", self.run, self.model, *self._where, "--cases", 1)

    def infer(self) -> dict[str, Any]:
        """Answers for what has no labels."""
        asked = [self.made.folder / place for place in self.made.unlabelled]
        out = self.root / "answers"
        return done(
            "infer", *asked, "--task", self.model, "--out", out, "--device", "cpu", "--no-preview", *self.made.asked
        )


def _described(record: ItemRecord, wanted: Wanted) -> Wanted:
    """What is known of an image, as what is wanted would say it."""
    names = {
        label.classes[value]
        for label in record.labels.values()
        for value, number in label.voxels_per_class.items()
        if number
    }
    findings = next(iter(record.findings.values()), {}) if wanted.findings is not None else None
    boxes = None
    if wanted.boxes is not None:
        boxes = tuple(sorted({box.name for drawn in record.boxes.values() for box in drawn}))
    return Wanted(wanted.patient, record.modality, frozenset(names), wanted.channel, findings, boxes)
