"""What validation images teach of reading answers: kept in the run, heeded wherever answers are read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medssl_cli.base.errors import GateError
from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.choices import Choices
from medssl_cli.engine.ensemble import ensemble_of, mean_head
from medssl_cli.engine.evaluate import subject_of_run
from medssl_cli.engine.finetune import finetune
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.heads import LargestParts, MasksHead
from medssl_cli.imaging.components import largest_part
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import supervision_of
from medssl_cli.tasks.segmentation import largest
from medssl_cli.tasks.segmentation.scores import SegmentationSubject
from tests.listener import Listener
from tests.toy_cache import toy_cache
from tests.toy_recipes import task_recipe

BALL = LargestParts(classes=("ball_1",))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return toy_cache(tmp_path_factory.mktemp("largest") / "cache", num_patients=6, size=16)


@pytest.fixture(scope="module")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was told what it learns, after two steps that teach it nothing."""
    root = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medssl_cli.tasks.segmentation.targets.learn_largest", told)
        finetune(recipe(), cache, root, Choices(), device="cpu", talk=TALK)
    return root


TALK = Listener()


def told(answers: Any, classes: Any, *, ignored: int) -> LargestParts:
    assert [(answer.shape, reference.shape) for answer, reference in answers]
    return BALL


def recipe(keep: str = "where_it_pays") -> TaskRecipe:
    return task_recipe(
        {
            "name": "balls",
            "backbone": {"name": "unet", "channels": [4, 8], "strides": [1, 2], "num_res_units": 0},
            "task": {"name": "segmentation", "classes": ["ball_1", "ball_2"], "keep_largest": keep},
            "data": {"window_hu": [-200, 300], "crop_size": [16, 16, 16], "batch_size": 1},
            "optimizer": {"learning_rate": 1e-5},
            "steps": 2,
        }
    )


def test_it_is_learnt_when_the_training_ends_and_said(run: Path) -> None:
    assert json.loads((run / "learnt.json").read_text()) == {"foreground": False, "classes": ["ball_1"]}
    assert any("learnt on the validation images" in note for note in TALK.notes)


def test_evaluation_and_export_heed_it(run: Path, cache: Cache) -> None:
    loaded = load_finetuned(run)
    subject = subject_of_run(run, cache, split="val", device="cpu")
    assert isinstance(subject, SegmentationSubject)
    image = cache.read_image(subject.records[0])
    answer: NDArray[np.uint8] = subject.segment(image)

    head = supervision_of(loaded.recipe).head(loaded.network, lambda *_: np.zeros(0), lambda: (cache, []))

    assert isinstance(head, MasksHead)
    assert head.largest == BALL
    assert np.array_equal(largest_part(answer == 1), answer == 1)


def test_an_ensemble_heeds_what_most_of_its_members_learnt(run: Path) -> None:
    member, other = load_finetuned(run), load_finetuned(run)
    del other.network.learnt
    supervision = supervision_of(member.recipe)

    def head(network: Any) -> Any:
        return supervision.head(network, lambda *_: np.zeros(0), lambda: pytest.fail("nobody asks"))

    for members, expected in (([member, member, other], BALL), ([member, other, other], LargestParts())):
        assert head(ensemble_of(run, members).network).largest == expected
    assert mean_head([head(member.network)] * 3).largest == BALL
    assert head(ensemble_of(run, [other, other]).network).largest is None


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": ["liver"]}', '{"foreground": "x"}', '{"more": 1}'])
def test_what_it_cannot_have_learnt_is_damage(run: Path, content: str) -> None:
    before = (run / "learnt.json").read_text()
    (run / "learnt.json").write_text(content)

    with pytest.raises(GateError, match=r"E_RUN_CORRUPT: learnt\.json"):
        load_finetuned(run)

    (run / "learnt.json").write_text(before)


def test_nothing_is_asked_where_the_recipe_does_not_ask(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(largest, "learn_largest", lambda *_, **__: pytest.fail("nobody asked"))

    finetune(recipe("never"), cache, tmp_path / "run", Choices(), device="cpu", talk=Silence())

    assert not (tmp_path / "run" / "learnt.json").exists()
    assert not load_finetuned(tmp_path / "run").network.learnt
