"""The trainings of a study: each a run folder with the evaluation of its last weights on the test patients."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl_cli.base.files import storage_errors, write_atomic
from medssl_cli.base.plain_json import dump
from medssl_cli.base.signals import StopRequest
from medssl_cli.base.talk import Talk
from medssl_cli.cache.store import Cache
from medssl_cli.deploy.run_scores import keep_scores
from medssl_cli.engine.evaluate import subject_of_run
from medssl_cli.engine.trainings import SeparateTraining


@dataclass(frozen=True)
class StudyTraining(SeparateTraining[None]):
    """See `SeparateTraining`: one training and its evaluation."""

    @property
    def is_done(self) -> bool:
        """See `SeparateTraining.is_done`."""
        return scores_path(self.root).is_file()

    def train(self, talk: Talk, stop: StopRequest) -> None:
        """See `SeparateTraining.train`."""
        self.finetune(talk)
        if self.is_done:
            return
        cache = Cache.open(self.cache)
        subject = subject_of_run(self.root, cache, split="test", device=self.device)

        def stop_between_cases(*_: object) -> None:
            if stop.is_set:
                stop.raise_interrupted("stopped in an evaluation")

        results = subject.score(cache, split="test", talk=talk, on_case=stop_between_cases)
        path = scores_path(self.root)
        with storage_errors("the results"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path.parent / "scores.csv", results.csv.encode())
        keep_scores(self.root, results.document, weights_sha256=subject.weights_sha256, split="test")
        write_atomic(path, dump(results.document).encode())


def scores_path(root: Path) -> Path:
    """Where the document of a run's evaluation lies; it is there when all of the training is done."""
    return root / "evaluation-test" / "scores.json"


def read_scores(root: Path) -> dict[str, Any]:
    """The document of a run's evaluation."""
    scores: dict[str, Any] = json.loads(scores_path(root).read_bytes())
    return scores
