"""From scored trainings to what can be said about arms: means, intervals, paired differences, what they cost.

Trainings that have learnt from the same patients make a row. Two arms are compared training by training within a row,
with the same seed where both have seeds, and patient by patient; intervals draw rows and patients.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from medssl_cli.base.csv_text import csv_text
from medssl_cli.base.plain_json import without_nan
from medssl_cli.engine.cost import Cost
from medssl_cli.metrics.paired import PairedFigure
from medssl_cli.metrics.statistics import Estimate, holm_adjusted, mean_of_known
from medssl_cli.study.arms import SCRATCH
from medssl_cli.study.label_plan import Cell
from medssl_cli.study.labels import Scored
from medssl_cli.tasks import load_part

SCHEMA: Final = "medssl.label-efficiency/2"
COLUMNS: Final = ("arm", "patients", "steps", "draw", "seed", "structure")


@dataclass(frozen=True)
class StudyBlock:
    """All trainings of a study with one number of labelled patients and one length.

    Args:
        patients: Number of labelled patients.
        steps: Steps of the trainings.
        scored: The trainings.
        figures: Those of the task's first metric, the one that sums up the others first.
    """

    patients: int
    steps: int
    scored: list[Scored]
    figures: list[PairedFigure]

    @classmethod
    def of(cls, patients: int, steps: int, scored: list[Scored], kind: str) -> "StudyBlock":
        """Trainings as a block.

        Args:
            patients: See above.
            steps: See above.
            scored: See above.
            kind: Name of the task's kind.
        """
        every: list[PairedFigure] = load_part(kind, "scores").paired_figures([entry.scores for entry in scored])
        return cls(patients, steps, scored, [each for each in every if each.metric == every[0].metric])

    @property
    def arms(self) -> list[str]:
        """Names of the arms."""
        return list(dict.fromkeys(entry.cell.arm for entry in self.scored))

    def rows(self, arm: str) -> list[list[int]]:
        """Places of the trainings of an arm, row by row."""
        own = [place for place, entry in enumerate(self.scored) if entry.cell.arm == arm]
        numbers = sorted({self.scored[place].cell.row for place in own})
        return [
            sorted(
                (place for place in own if self._cell(place).row == row), key=lambda place: self._cell(place).seed or 0
            )
            for row in numbers
        ]

    def pairs(self, arm: str, other: str) -> list[list[tuple[int, int]]]:
        """Places of the trainings of two arms, side by side, row by row."""
        found = []
        for own, others in zip(self.rows(arm), self.rows(other), strict=True):
            if len(own) < len(others):
                found.append([(self._partner(place, own), place) for place in others])
            else:
                found.append([(place, self._partner(place, others)) for place in own])
        return found

    def _partner(self, place: int, others: Sequence[int]) -> int:
        """The training of the other arm with the same seed; any of the row where that arm has no seeds."""
        seed = self._cell(place).seed
        return next((other for other in others if self._cell(other).seed == seed), others[0])

    def _cell(self, place: int) -> Cell:
        return self.scored[place].cell

    def estimate(self, figure: PairedFigure, found: Estimate) -> dict[str, Any]:
        """An estimate for a document, with the number of patients of whom the figure says nothing."""
        everyone = {case["patient"] for case in self.scored[0].scores["cases"]}
        return asdict(replace(found, num_missing=len(everyone - set(figure.patients))))


def label_results(
    scored: Sequence[Scored], about: Mapping[str, Any], *, kind: str, steps: int = 0, baseline: str = SCRATCH
) -> dict[str, Any]:
    """What `results.json` holds.

    Every difference is an arm minus the baseline. Its interval draws rows and patients; the p-value is of the patients'
    answers in these trainings, adjusted for the number of comparisons (Holm), and holds for these trainings only.

    Args:
        scored: All cells of a plan.
        about: Facts to write beside them.
        kind: Name of the task's kind.
        steps: Steps of trainings whose cell does not say.
        baseline: Name of the arm that the others are compared with.

    Raises:
        NothingUsableError: `E_TOO_FEW_PATIENTS`, the task has nothing to compare.
    """
    blocks = list(_blocks(scored, kind, steps))
    levels = [level for block in blocks for level in _levels(block)]
    differences = [entry for block in blocks for entry in _differences(block, baseline)]
    whole = blocks[0].figures[0].structure
    main = {str(place): entry for place, entry in enumerate(differences) if entry["structure"] == whole}
    for place, p_value in holm_adjusted({place: entry["p_value"] for place, entry in main.items()}).items():
        main[place]["p_holm"] = p_value
    document = {
        "schema": SCHEMA,
        **about,
        "baseline": baseline,
        "figure": blocks[0].figures[0].metric,
        "cost_unit": next((entry.cost.unit for entry in scored if entry.cost is not None), None),
        "num_test_patients": len({case["patient"] for case in scored[0].scores["cases"]}),
        "runs": [run for block in blocks for run in _runs(block)],
        "levels": levels,
        "differences": differences,
        "best_steps_of_baseline": _best_steps(levels, baseline, whole),
    }
    cleaned: dict[str, Any] = without_nan(document)
    return cleaned


def _blocks(scored: Sequence[Scored], kind: str, steps: int) -> Iterator[StudyBlock]:
    """By number of patients, then by length."""
    places = sorted({(entry.cell.patients, entry.cell.steps or steps) for entry in scored})
    for number, length in places:
        own = [entry for entry in scored if (entry.cell.patients, entry.cell.steps or steps) == (number, length)]
        yield StudyBlock.of(number, length, own, kind)


def _levels(block: StudyBlock) -> Iterator[dict[str, Any]]:
    for figure in block.figures:
        for arm in block.arms:
            rows = block.rows(arm)
            yield {
                **_about(block, figure, arm),
                **block.estimate(figure, figure.arm_level(rows)),
                "per_seed": [figure.value(place) for row in rows for place in row],
                "cost_s": _mean_cost([block.scored[place].cost for row in rows for place in row]),
                "pretraining_cost_s": _mean_cost(
                    [block.scored[place].pretraining_cost for row in rows for place in row]
                ),
            }


def _differences(block: StudyBlock, baseline: str) -> Iterator[dict[str, Any]]:
    for figure in block.figures:
        for arm in block.arms:
            if arm != baseline:
                rows = block.pairs(arm, baseline)
                over_patients = figure.difference_over_patients(rows)
                yield {
                    **_about(block, figure, arm),
                    "minus": baseline,
                    **block.estimate(figure, figure.arm_difference(rows)),
                    "per_seed": [figure.value(one) - figure.value(other) for row in rows for one, other in row],
                    "over_patients": {"low": over_patients.low, "high": over_patients.high},
                    "num_better": figure.num_better(rows),
                    "p_value": figure.arm_p_value(rows),
                }


def _runs(block: StudyBlock) -> Iterator[dict[str, Any]]:
    for place, entry in enumerate(block.scored):
        yield {
            **asdict(entry.cell),
            "draw": entry.cell.row,
            "steps": block.steps,
            "structures": {each.structure: block.estimate(each, each.level(place)) for each in block.figures},
            "cost_s": None if entry.cost is None else entry.cost.seconds,
            "pretraining_cost_s": None if entry.pretraining_cost is None else entry.pretraining_cost.seconds,
        }


def _about(block: StudyBlock, figure: PairedFigure, arm: str) -> dict[str, Any]:
    return {"arm": arm, "patients": block.patients, "steps": block.steps, "structure": figure.structure}


def _mean_cost(costs: Sequence[Cost | None]) -> float | None:
    """Mean of what is known; None where nothing is."""
    known = [cost.seconds for cost in costs if cost is not None]
    return mean_of_known(known) if known else None


def _best_steps(levels: Sequence[Mapping[str, Any]], baseline: str, structure: str) -> dict[str, int]:
    """For each number of patients the length with which the baseline does best, on the test patients."""
    own = [level for level in levels if (level["arm"], level["structure"]) == (baseline, structure)]
    numbers = sorted({level["patients"] for level in own})
    return {
        str(number): max((each for each in own if each["patients"] == number), key=lambda each: each["mean"])["steps"]
        for number in numbers
    }


def results_csv(document: Mapping[str, Any]) -> str:
    """One row per training and structure, with the interval over patients; the same bytes however long it took.

    Args:
        document: As `label_results` returns it.
    """
    rows: list[Sequence[object]] = [(*COLUMNS, str(document["figure"]).lower(), "low", "high")]
    for run in document["runs"]:
        for structure, estimate in run["structures"].items():
            place = [run[name] for name in COLUMNS[:-1]]
            values = [estimate[key] for key in ("mean", "low", "high")]
            rows.append((*place, structure, *values))
    return csv_text(rows)
