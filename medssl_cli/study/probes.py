"""What do several pre-trainings know? Probes of every run of every arm, beside the untrained network, on one cache.

An arm is a way to pre-train, run with several seeds. All arms are asked the same questions of the same patients.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from medssl_cli.base.csv_text import csv_text
from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import storage_errors, write_atomic
from medssl_cli.base.plain_json import dump
from medssl_cli.base.signals import stop_on_signals
from medssl_cli.base.talk import Talk
from medssl_cli.cache.store import Cache
from medssl_cli.report.plots import seed_dots
from medssl_cli.study.arms import SEED_FIELD
from medssl_cli.study.probe import PRETRAINED, UNTRAINED, Kind, probe_run

SCHEMA: Final = "medssl.probes/1"
KINDS: Final[tuple[Kind, ...]] = ("linear", "knn")


@dataclass(frozen=True)
class ProbeQuestion:
    """A question to the embeddings: a set of findings and one of them (or `any`), or `modality`, or `level`."""

    labels: str
    finding: str | None

    @property
    def name(self) -> str:
        """For tables."""
        return self.labels if self.finding is None else f"{self.labels} {self.finding}"


def parse_asked(text: str) -> ProbeQuestion:
    """A question from `SET`, `SET:FINDING`, `modality` or `level`.

    Raises:
        UsageError: `E_USAGE`.
    """
    labels, separator, finding = text.partition(":")
    if not labels or (separator and not finding):
        raise UsageError("E_USAGE", f"--ask {text!r} is not SET or SET:FINDING", hint="for example nih:any, or level")
    return ProbeQuestion(labels, finding or None)


def compare_probes(
    inits: Mapping[str, str],
    asked: Sequence[ProbeQuestion],
    cache: Cache,
    folder: Path,
    *,
    num_seeds: int,
    device: str,
    talk: Talk,
) -> dict[str, Any]:
    """Probe all runs; answers that a folder has already are not asked for again.

    Args:
        inits: Arm to run folder; `{seed}` in it stands for the seed.
        asked: Questions.
        cache: Holds the images.
        folder: Folder for the answers.
        num_seeds: Number of seeds of each arm.
        device: Where encoders compute.
        talk: Notes and progress.

    Returns:
        What `results.json` holds.
    """
    rows: list[dict[str, Any]] = []
    with stop_on_signals() as stop:
        for arm, init in inits.items():
            for seed in range(num_seeds):
                for question in asked:
                    for kind in KINDS:
                        if stop.is_set:
                            stop.raise_interrupted(f"stopped after {len(rows)} probes")
                        run = Path(init.replace(SEED_FIELD, str(seed)))
                        path = folder / f"{arm}-seed{seed}-{kind}-{question.name.replace(' ', '_')}.json"
                        document = _answer(path, run, cache, question, kind, device=device, talk=talk)
                        rows.append(_row(arm, seed, question, kind, document))
    return {"schema": SCHEMA, "num_seeds": num_seeds, "rows": rows, "levels": _levels(rows)}


def _answer(
    path: Path, run: Path, cache: Cache, question: ProbeQuestion, kind: Kind, *, device: str, talk: Talk
) -> dict[str, Any]:
    if not path.is_file():
        found = probe_run(
            run, cache, kind=kind, labels=question.labels, finding=question.finding, device=device, talk=talk
        )
        with storage_errors("the results"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, dump(found).encode())
    answer: dict[str, Any] = json.loads(path.read_bytes())
    return answer


def _row(arm: str, seed: int, question: ProbeQuestion, kind: Kind, document: Mapping[str, Any]) -> dict[str, Any]:
    """One probe: AUROC and average precision of the trained and the untrained network, means over classes."""
    classes = document["classes"].values()

    def mean(network: str, figure: str) -> float:
        return float(np.mean([each[network][figure]["mean"] for each in classes]))

    single = next(iter(classes)) if len(classes) == 1 else None
    return {
        "arm": arm,
        "seed": seed,
        "question": question.name,
        "probe": kind,
        "num_patients": document["num_patients"],
        "auroc": mean(PRETRAINED, "auroc"),
        "average_precision": mean(PRETRAINED, "average_precision"),
        "untrained_auroc": mean(UNTRAINED, "auroc"),
        "untrained_average_precision": mean(UNTRAINED, "average_precision"),
        "auroc_low": None if single is None else single[PRETRAINED]["auroc"]["low"],
        "auroc_high": None if single is None else single[PRETRAINED]["auroc"]["high"],
    }


def _levels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, the untrained network as an arm of its own: its seeds are those of the first arm."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    cases = list(dict.fromkeys((row["question"], row["probe"]) for row in rows))
    levels = []
    for question, probe in cases:
        answered = [row for row in rows if (row["question"], row["probe"]) == (question, probe)]
        first = [row for row in answered if row["arm"] == arms[0]]
        untrained = {row["seed"]: row["untrained_auroc"] for row in first}
        levels.append(_level(question, probe, "untrained", untrained, untrained))
        for arm in arms:
            trained = {row["seed"]: row["auroc"] for row in answered if row["arm"] == arm}
            levels.append(_level(question, probe, arm, trained, untrained))
    return levels


def _level(
    question: str, probe: str, arm: str, by_seed: Mapping[int, float], untrained: Mapping[int, float]
) -> dict[str, Any]:
    gained = [value - untrained[seed] for seed, value in by_seed.items()]
    return {
        "question": question,
        "probe": probe,
        "arm": arm,
        "mean": float(np.mean(list(by_seed.values()))),
        "per_seed": list(by_seed.values()),
        "gained": float(np.mean(gained)),
    }


def probes_csv(document: Mapping[str, Any]) -> str:
    """One row per probe."""
    columns = list(document["rows"][0])
    return csv_text([columns, *([row.get(column, "") for column in columns] for row in document["rows"])])


def probes_plot(document: Mapping[str, Any]) -> bytes:
    """AUROC of every arm, a panel per question and kind of probe, as SVG.

    Args:
        document: As `compare_probes` returns it.
    """
    panels: dict[str, dict[str, list[float]]] = {}
    for level in document["levels"]:
        panels.setdefault(f"{level['question']}, {level['probe']}", {})[level["arm"]] = level["per_seed"]
    return seed_dots(panels, xlabel="AUROC on test patients")
