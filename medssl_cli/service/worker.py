"""Answers for studies that are complete: asks the models whose rules match, and sends what they find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from medssl_cli.base.errors import GateError, InterruptedCleanlyError, MedsslError, StorageError, UsageError
from medssl_cli.deploy.again import MAX_ATTEMPTS, failed, is_unsent, wait_s, without_disk
from medssl_cli.deploy.choosing import SeriesRule
from medssl_cli.deploy.delivery import Delivery, Destination
from medssl_cli.deploy.infer import InferSettings, Output, infer
from medssl_cli.deploy.mask_files import NOT_WRITTEN
from medssl_cli.deploy.results import NOT_TAKEN, ScanResult
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.heads import MasksHead
from medssl_cli.service.spool import Spool


@dataclass(frozen=True)
class TaskRule:
    """A model, and the series that it is asked about.

    Args:
        task: As `--task` names it.
        series: Rules about series; none takes every series of the model's modality.
    """

    task: str
    series: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `heart-seg` or `heart-seg: modality=MR,slices>=40`.

        Raises:
            UsageError: `E_USAGE`.
        """
        task, _, rule = text.partition(": ")
        if rule.strip():
            SeriesRule.parse(rule.strip())
            return cls(task.strip(), (rule.strip(),))
        return cls(task.strip().removesuffix(":"))


def outputs_of(model: OnnxModel, wanted: Sequence[Output]) -> tuple[Output, ...]:
    """What a model's answer is written as: findings and boxes, which have no segmentation, always as a report."""
    return (*wanted, *(() if isinstance(model.bundle.head, MasksHead) or "sr" in wanted else ("sr",)))


@dataclass
class Worker:
    """Answers for one study after the other.

    Args:
        spool: The queue.
        models: Files of models, each with the rules about its series.
        how: How scans are done.
        destinations: Where results of a study go, by the AE titles that have sent it.
        count: Told what happened, for the metrics.
        say: Told of it in words.
    """

    spool: Spool
    models: Sequence[tuple[Path, tuple[str, ...]]]
    how: InferSettings
    destinations: Callable[[Sequence[str]], Sequence[Destination]]
    count: Callable[[str, int], None]
    say: Callable[[str], None]
    _opened: list[OnnxModel] = field(default_factory=list)

    def open_models(self) -> None:
        """Load all models: what is wrong with one shows now.

        Raises:
            UsageError: `E_MODEL_INVALID`, `E_DEVICE`; `E_USAGE`, two are for one task.
            GateError: `E_MODEL_CORRUPT`.
        """
        self._opened = [self.how.opened(path) for path, _ in self.models]
        tasks = [model.bundle.task for model in self._opened]
        if len(set(tasks)) < len(tasks):
            raise UsageError("E_USAGE", "two models have one task, and their results one name", hint="leave one out")

    def close(self) -> None:
        """End the processes of all models."""
        for model in self._opened:
            model.close()

    def answer(self, study: str) -> None:
        """Answer for a study, or leave it for later.

        Raises:
            StorageError: `E_IO`, `E_NO_SPACE`, the disk refuses: nobody can be answered for.
            GateError: `E_MODEL_CORRUPT`, a model was replaced while it was used: only another process can answer.
        """
        content, attempt = self.spool.begin(study)
        if attempt > MAX_ATTEMPTS:
            self._finish(study, content, [], problem=f"given up after {MAX_ATTEMPTS} attempts")
            return
        try:
            results = self._results(study)
        except InterruptedCleanlyError:
            return
        except (StorageError, GateError):
            raise
        except MedsslError as error:
            self._finish(study, content, [], problem=f"{error.code}: {error.message}")
            return
        if self.how.is_stopped():
            return
        _require_disk(results)
        if is_unsent(results):
            self._postpone(study, "results are not sent", wait_s(self.spool.tries(study)))
            return
        if failures := failed(results):
            told = f"{len(failures)} scans failed ({failures[0].code})"
            self._postpone(study, told, wait_s(attempt - 1), has_failed=True)
            return
        self._finish(study, content, results)

    def _postpone(self, study: str, why: str, seconds: float, *, has_failed: bool = False) -> None:
        self.say(f"study {study[:12]}: {why}, tried again in {seconds:.0f} s")
        self.count("postponed_studies", 1)
        self.spool.postpone(study, seconds, has_failed=has_failed)

    def _results(self, study: str) -> list[ScanResult]:
        """What all models say of a study; what was found before a kill is not asked for again."""
        found: list[ScanResult] = []
        places = self.destinations(self.spool.senders(study))
        for (path, rules), model in zip(self.models, self._opened, strict=True):
            out = self.spool.folder(study) / "results" / model.bundle.task
            delivery = Delivery(out, places, refused=lambda: self.count("untaken_objects", 1))
            how = replace(self.how, outputs=outputs_of(model, self.how.outputs), deliver=delivery, overwrite=True)
            own = rules or ((f"modality={model.bundle.modality}",) if model.bundle.modality else ())
            report = infer(
                [self.spool.files(study)],
                path,
                out=out,
                how=how,
                model=model,
                only_series=own,
                is_wanted=lambda path: True,
            )
            found += report.results
            if self.how.is_stopped():
                break
        return found

    def _finish(self, study: str, content: str, results: Sequence[ScanResult], *, problem: str = "") -> None:
        counts = {status: sum(one.status == status for one in results) for status in ("done", "refused", "skipped")}
        sent = sorted({place for one in results for place in one.sent})
        self.spool.finish(study, content, {"counts": counts, "sent": sent, "problem": problem})
        self.count("failed_studies" if problem else "answered_studies", 1)
        self.count("answered_scans", sum(one.status == "done" and not one.resumed for one in results))
        self.count("refused_scans", counts["refused"])
        lost = [code for one in results if not one.resumed for code in one.warnings if code in NOT_WRITTEN.values()]
        self.count("unwritten_objects", len(lost))
        told = problem or ", ".join(f"{number} {status}" for status, number in counts.items() if number) or "nothing"
        lost += [NOT_TAKEN for one in results if NOT_TAKEN in one.warnings]
        told += f" [{', '.join(sorted(set(lost)))}]" if lost else ""
        self.say(f"study {study[:12]}: {told}{', sent to ' if sent else ''}{', '.join(sent)}")


def _require_disk(results: Sequence[ScanResult]) -> None:
    """See that no scan is lost because its files could not be read or written.

    Raises:
        StorageError: `E_IO`, `E_NO_SPACE`.
    """
    if (refused := without_disk(results)) is not None:
        raise StorageError(refused.code, refused.message, hint=refused.hint)
