"""Every published data set can be planned from its own labels, as it comes in from its folder as distributed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from medssl_cli.base.talk import Silence
from medssl_cli.cache.store import Cache
from medssl_cli.engine.planning import own_task, plan_task
from medssl_cli.engine.step_cost import StepCost
from tests.published import brain, chest, heart
from tests.published.files import Published
from tests.published.road import Road

SETS = (brain.nnunet_brats, heart.mmwhs_ct, chest.vindr)


@pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)
def test_its_own_labels_are_planned(
    make: Callable[[Path], Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    road = Road(make(tmp_path), tmp_path, monkeypatch)
    road.ingest()
    cache = Cache.open(road.cache)
    (label_set, *_) = sorted(
        {name for record in cache.records() for kind in (record.labels, record.boxes, record.findings) for name in kind}
    )

    cost = StepCost(step_s=1.0, memory_bytes=10**6)
    plan = plan_task(
        own_task(cache, label_set, "mine"),
        cache,
        device="cpu",
        talk=Silence(),
        minutes=1.0,
        measure=lambda recipe: cost,
    )

    wanted = {name for image in road.made.images.values() for name in image.labels}
    assert plan.fingerprint.num_images > 0
    assert wanted <= set(plan.recipe.task.options["classes"])
