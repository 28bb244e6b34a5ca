"""Several processes ingest the same images at once: the cache is what one process alone would have made.

`MEDSSL_CONCURRENCY=8x500x20` is the release's size: processes x images x repetitions (4x8x2 by default).
"""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from medssl_cli.cache.store import Cache
from tests import warm
from tests.dicom_factory import ct_series
from tests.environment import ENVIRONMENT, give_known_key

PROCESSES, IMAGES, REPETITIONS = map(int, os.environ.get("MEDSSL_CONCURRENCY", "4x8x2").split("x"))
WRITER = """
import random, sys
from pathlib import Path
import numpy as np
from medssl_cli.cache.store import Cache
from tests.small_cache import label_of, record_of, volume_of
root, number, num_images = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
while not Path(sys.argv[4]).exists():
    pass
cache = Cache.open_or_create(root)
order = random.Random(number).sample(range(num_images), num_images)
label = np.ones((6, 5, 4), dtype=np.uint8)
with cache.writing():
    for seed in order:
        volume = volume_of(seed)
        record = record_of(cache, volume, f"P{seed}")
        print("image", cache.add(volume, record))
        for name in random.Random(number + seed).sample(["seg", "other", "third"], 3):
            print("label", cache.add_label(record.item_id, name, label_of(label), {1: name}))
        found = {"csv": {"effusion": float(seed)}}
        print("findings", cache.update_record(record.item_id, lambda now: now.model_copy(update={"findings": found})))
        print("own", cache.update_record(
            record.item_id, lambda now: now.model_copy(update={"boxes": {**now.boxes, f"by-{number}": ()}})
        ))
"""


def content(root: Path) -> dict[str, str]:
    files = [path for path in sorted((root / "items").rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_with(root: Path, numbers: list[int], *, at_once: bool) -> Counter[str]:
    """Let writers fill a cache, one after the other or all at once; how often each answer was given."""
    give_known_key(root)
    answers: Counter[str] = Counter()
    groups = [numbers] if at_once else [[number] for number in numbers]
    for group in groups:
        start = root.with_name("start")
        processes = [warm.start([root, number, IMAGES, start], code=WRITER, kind="reading") for number in group]
        start.touch()
        for process in processes:
            said, talk = process.communicate()
            assert process.returncode == 0, talk
            answers.update(said.splitlines())
        start.unlink()
    return answers


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Counter[str]]:
    """What the same writers leave and answer when they come one after the other."""
    root = tmp_path_factory.mktemp("serial") / "cache"
    answers = write_with(root, list(range(PROCESSES)), at_once=False)
    return content(root), answers


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_writers_at_once_leave_what_writers_in_turn_leave(serial, tmp_path, repetition):
    root = tmp_path / "cache"

    answers = write_with(root, list(range(PROCESSES)), at_once=True)

    assert (content(root), answers) == serial
    assert answers["image True"] == answers["findings True"] == IMAGES
    assert answers["label True"] == 3 * IMAGES
    assert answers["own True"] == PROCESSES * IMAGES
    assert list(Cache.open(root).verify()) == [None] * IMAGES
    records = Cache.open(root).catalog.records()
    assert records == list(Cache.open(root).scan())
    assert {len(record.labels) + len(record.findings) + len(record.boxes) for record in records} == {4 + PROCESSES}
    assert not [path.name for path in root.rglob("*") if path.name.startswith((".tmp-", "writing-", "catalog-is"))]


def test_processes_that_make_a_cache_at_once_agree_on_one_key(tmp_path):
    code = "import sys; from pathlib import Path; from medssl_cli.cache.store import Cache; sys.stdin.readline();"
    code += "print(Cache.open_or_create(Path(sys.argv[1])).pseudonyms.key_id)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "cache")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )
        for _ in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()

    key_ids = {process.communicate()[0].strip() for process in processes}

    assert key_ids == {Cache.open(tmp_path / "cache").pseudonyms.key_id}


def test_ingests_of_one_input_at_once_each_keep_a_report_of_what_they_stored(tmp_path):
    for number in range(IMAGES):
        heights = [number + 5 * k for k in range(4)]
        ct_series(tmp_path / "in" / str(number), positions_mm=heights, series_uid=f"1.2.{number}")
    root = tmp_path / "cache"
    Cache.open_or_create(root)
    command = ["ingest", tmp_path / "in", "--cache", root, "--workers", "1", "--json"]

    processes = [warm.start(command, kind="reading") for _ in range(PROCESSES)]
    said = [json.loads(process.communicate()[0]) for process in processes]
    kept = [json.loads(path.read_text()) for path in (root / "reports").glob("*.json")]

    assert [process.returncode for process in processes] == [0] * PROCESSES
    assert sum(report["stored"]["images"] for report in said) == IMAGES
    assert all(report in kept for report in said if report["stored"]["images"])
    assert len(list((root / "reports").glob("*.html"))) == len(kept)
