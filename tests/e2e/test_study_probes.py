"""`medssl study probes`: every question is asked once, and every arm is set against the untrained network."""

import json
from pathlib import Path

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.pretrain import pretrain
from medssl_cli.study.probes import ProbeQuestion, compare_probes, parse_asked, probes_csv, probes_plot
from tests.e2e.test_slice_methods import recipe
from tests.slice_cache import slice_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return slice_cache(tmp_path_factory.mktemp("probes") / "cache")


def test_arms_are_probed_once_and_compared_with_the_untrained_network(cache: Cache, tmp_path: Path) -> None:
    for arm in ("swav", "joint"):
        pretrain(recipe(arm, steps=1), cache, tmp_path / f"{arm}-0", device="cpu", talk=Silence())
    inits = {arm: str(tmp_path / f"{arm}-{{seed}}") for arm in ("swav", "joint")}
    asked = [ProbeQuestion("modality", None)]

    def compare() -> dict[str, object]:
        return compare_probes(inits, asked, cache, tmp_path / "out", num_seeds=1, device="cpu", talk=Silence())

    first = compare()
    answers = sorted((tmp_path / "out").glob("*.json"))
    assert len(answers) == 4
    changed = json.loads(answers[0].read_bytes())
    changed["num_patients"] = 12345
    answers[0].write_text(json.dumps(changed))
    again = compare()

    levels = {(level["arm"], level["probe"]): level for level in first["levels"]}
    assert set(levels) == {(arm, probe) for arm in ("untrained", "swav", "joint") for probe in ("linear", "knn")}
    row = next(row for row in first["rows"] if (row["arm"], row["probe"]) == ("swav", "knn"))
    assert levels["swav", "knn"]["gained"] == pytest.approx(row["auroc"] - row["untrained_auroc"])
    assert [row["num_patients"] for row in again["rows"]].count(12345) == 1  # it was read, not asked again
    assert probes_csv(first).count("\n") == 5
    assert b"<svg" in probes_plot(first)


def test_questions_are_sets_and_findings() -> None:
    assert parse_asked("nih:any") == ProbeQuestion("nih", "any")
    assert parse_asked("level").name == "level"
    for text in ("", ":any", "nih:"):
        with pytest.raises(UsageError, match="E_USAGE"):
            parse_asked(text)
