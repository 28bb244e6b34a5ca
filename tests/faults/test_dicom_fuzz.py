"""Damaged DICOM files: refused with a code, or read as a second derivation from the same bytes reads them.

Every mutant is a function of its kind and number, so a failure is one integer: `tests.dicom_mutants.judge`.
`MEDSSL_FUZZ` multiplies the number of mutants, `MEDSSL_FUZZ_SEED` is the number of the first one.
"""

import os
from collections import Counter

from medssl_cli.base.errors import CODES
from medssl_cli.work.workers import Workers
from tests.dicom_mutants import judge, judge_sound, seeds

COUNT = 480 * int(os.environ.get("MEDSSL_FUZZ", "1"))
FIRST = int(os.environ.get("MEDSSL_FUZZ_SEED", "0"))
MEMORY_BYTES = 4 * 2**30


def test_damage_is_refused_with_a_code_or_read_as_it_is():
    kinds = list(seeds())
    tasks = [(kinds[number % len(kinds)], number) for number in range(FIRST, FIRST + COUNT)]
    with Workers(2, memory_limit_bytes=MEMORY_BYTES) as workers:
        outcomes = list(workers.map(judge, tasks, timeout_s=60))

    assert Counter(outcome.failure for outcome in outcomes) == {"": COUNT}
    verdicts = {outcome.task: outcome.result or "" for outcome in outcomes}
    wrong = {task: verdict for task, verdict in verdicts.items() if verdict not in {*CODES, "read", "DUPLICATE"}}
    underivable = {task for task, verdict in wrong.items() if verdict.startswith("UNDERIVABLE")}
    assert not {task: verdict for task, verdict in wrong.items() if task not in underivable}
    assert len(underivable) <= COUNT // 100
    counts = Counter(verdicts.values())
    assert COUNT // 10 < counts["read"] < COUNT // 2
    assert len(counts) > 10


def test_sound_files_are_read_as_they_are_derived_again():
    assert {judge_sound(kind) for kind in seeds()} == {"read"}
