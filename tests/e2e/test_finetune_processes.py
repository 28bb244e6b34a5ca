"""Fine-tuning spread over processes: the same result as in one, also where one process has a broken batch.

Batch norms, a Dice over the batch, voxels that nobody judged, noise and two batches per step: whatever looks across
images, or is drawn for them, must be that of the whole batch. Everything here runs on the CPU with gloo.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from medssl_cli.engine.metrics_log import read_metrics
from tests.e2e.test_processes import complete, finish, start
from tests.environment import ENVIRONMENT, give_known_key
from tests.toy_cache import Marked, toy_cache
from tests.toy_recipes import CT, TINY_UNET, balls_yaml

pytestmark = pytest.mark.slow

STEPS = 4
RECIPE = balls_yaml(
    backbone={**TINY_UNET, "norm": "batch"},
    data={**CT, "crop_size": [16, 16, 16], "batch_size": 4},
    augmentation={"affine_prob": 0.5, "noise_std": 0.1},
    steps=STEPS,
    accumulate=2,
    ema_decay=0.5,
    validate_every=2,
    checkpoint_every=2,
    log_every=1,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "cache"
    give_known_key(root)

    def half_judged(number: int, voxels: np.ndarray) -> Marked:
        judged = voxels.copy()
        judged[: number + 1] = 9
        return Marked(judged, {1: "ball_1", 2: "ball_2"}, ignore=9)

    return toy_cache(root, num_patients=8, size=20, mark=half_judged).root


def command(cache: Path, root: Path, *options: str) -> list[str]:
    root.mkdir(exist_ok=True)
    (root / "balls.yaml").write_text(RECIPE)
    where = ["--cache", str(cache), "--run", str(root / "run"), "--device", "cpu"]
    return ["finetune", "--task", str(root / "balls.yaml"), *where, *options]


def best(run: Path) -> dict[str, np.ndarray]:
    (path,) = (run / "checkpoints").glob("best-*")
    return safetensors.numpy.load_file(path)


def numbers(run: Path, key: str) -> list[float]:
    return [entry[key] for entry in read_metrics(run) if key in entry]


def test_two_processes_train_and_validate_what_one_does(cache: Path, tmp_path: Path) -> None:
    complete(command(cache, tmp_path / "one"))
    said = complete(command(cache, tmp_path / "two", "--devices", "2", "--json"))

    whole, shared = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert json.loads(said)["steps"] == STEPS  # one document: one process speaks
    assert len(numbers(whole, "loss")) == STEPS
    for key in ("loss", "dice", "cross_entropy", "val_dice", "val_dice/ball_1"):
        np.testing.assert_allclose(numbers(shared, key), numbers(whole, key), rtol=0, atol=1e-5, err_msg=key)
    expected = best(whole)
    assert any("running_mean" in name for name in expected)
    for name, value in best(shared).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-5, err_msg=name)
    assert "time left" not in (shared / "page.html").read_text()


def test_two_processes_learn_from_unlabelled_images_what_one_does(cache: Path, tmp_path: Path) -> None:
    """In the first step boxes come from the next labelled image, which another process may have."""
    options = ["--patients", "2", "--unlabelled", "--set", "unlabelled.first_stage=0.25"]
    complete(command(cache, tmp_path / "one", *options))
    complete(command(cache, tmp_path / "two", "--devices", "2", *options))

    whole, shared = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert len(numbers(whole, "unlabelled/agreement")) == STEPS - 1
    for key in ("loss", "unlabelled/loss", "val_dice"):
        np.testing.assert_allclose(numbers(shared, key), numbers(whole, key), rtol=0, atol=1e-4, err_msg=key)
    expected = best(whole)
    for name, value in best(shared).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-4, err_msg=name)


def test_a_step_that_is_broken_in_one_process_is_left_out_by_both(cache: Path, tmp_path: Path) -> None:
    """Each holds a part of the network; the broken batch is the first of the second step."""
    arguments = command(cache, tmp_path, "--devices", "2", "--strategy", "fsdp")

    status, _, talk = finish(start(arguments, {**ENVIRONMENT, "MEDSSL_TEST_NAN_RANK": "1"}))

    assert status == 0, talk
    assert talk.count("W_STEP_SKIPPED: the loss of step 2") == 1
    assert [value is None for value in numbers(tmp_path / "run", "loss")] == [False, True, False, False]
    facts = json.loads((tmp_path / "run" / "skipped" / "step-00000002.json").read_text())
    assert len(facts["items"]) == 8
    assert all(np.isfinite(value).all() for value in best(tmp_path / "run").values())
