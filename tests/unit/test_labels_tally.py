"""What the report says of a file of rows: refusals by code, with their number and first row, and what is stored."""

from pathlib import Path

import numpy as np

from medssl_cli.formats.labels import FindingsLabel, Reference, RefusedRow
from medssl_cli.ingest.failures import Failure
from medssl_cli.ingest.labels import Annotation
from medssl_cli.ingest.tally import FileOutcome, Tally
from medssl_cli.ingest.tasks import StoredImage, StoredLabel

NEW, OLD = StoredLabel(is_new=True, warnings=("W_EMPTY_LABEL",)), StoredLabel(is_new=False, warnings=())


def label(*rows: int) -> Annotation:
    return Annotation(Path("t.csv"), "table", 0, FindingsLabel(Reference(name="a"), {}, rows))


def image(item: str) -> StoredImage:
    return StoredImage(item, "s", True, (1, 1, 1), np.eye(4), ())


def short(outcomes: list[FileOutcome]) -> list[tuple[str, str, str]]:
    return [(one.state, one.code, one.message) for one in outcomes]


def test_a_file_of_which_all_is_stored_has_one_entry() -> None:
    tally = Tally("table", num_rows=2)
    tally.add(label(2), image("a"), OLD)
    assert short(tally.outcomes()) == [("duplicate", "", "")]

    tally.add(label(3), image("b"), NEW)
    (outcome,) = tally.outcomes()
    assert (outcome.state, outcome.item, outcome.warnings) == ("accepted", "a", ("W_EMPTY_LABEL",))


def test_refusals_are_counted_by_code_and_what_was_stored_is_said() -> None:
    tally = Tally("table", 6, [RefusedRow(3, "E_LABEL_FORMAT", "a row without a key")], num_unmatched=1)
    tally.add(label(2), image("a"), NEW)
    tally.add(label(5, 7), image("b"), Failure("E_LABEL_GRID_MISMATCH", "a box leaves the picture by 3 pixels", row=7))

    outcomes = tally.outcomes()

    assert short(outcomes) == [
        ("accepted", "", "W_LABEL_UNMATCHED: 1 of 6 rows name no image"),
        (
            "quarantined", "E_LABEL_FORMAT",
            "1 of 6 rows refused, the first in line 3: a row without a key; stored with 1 images",
        ),
        (
            "quarantined", "E_LABEL_GRID_MISMATCH",
            "2 of 6 rows refused, the first in line 7: a box leaves the picture by 3 pixels; stored with 1 images",
        ),
    ]  # fmt: skip
    assert {outcome.item for outcome in outcomes} == {"a"}
    assert outcomes[0].warnings == ("W_EMPTY_LABEL", "W_LABEL_UNMATCHED")


def test_a_refused_column_is_no_row() -> None:
    tally = Tally("table", 4, [RefusedRow(5, "E_LABEL_COLUMN", "column 2 holds something else")], num_unmatched=2)

    assert short(tally.outcomes()) == [
        (
            "quarantined", "E_LABEL_COLUMN",
            "1 columns refused, the first in line 5: column 2 holds something else; stored with 0 images; "
            "2 rows name no image",
        ),
    ]  # fmt: skip


def test_a_file_that_labels_nothing_says_so() -> None:
    unmatched = Tally("coco", 5, num_unmatched=5, notes=[("W_LABEL_NOT_TAKEN", "2 boxes of crowds")])
    assert short(unmatched.outcomes()) == [
        (
            "quarantined", "E_LABEL_WITHOUT_IMAGE",
            "none of 5 annotations names an image that is known; 2 boxes of crowds",
        )
    ]  # fmt: skip
    silent = Tally("table", 3, num_silent=3)
    assert short(silent.outcomes()) == [
        ("quarantined", "E_LABEL_FORMAT", "none of 3 rows says anything about an image")
    ]


def test_a_row_is_refused_once_for_all_images_that_it_is_about() -> None:
    tally = Tally("table", 1)
    for item in "abc":
        tally.add(label(2), image(item), Failure("E_LABEL_CONFLICT", "other findings"))
    tally.add(label(2), None, Failure("E_LABEL_KEYS", "other images"))

    assert [one.message[:20] for one in tally.outcomes()] == ["1 of 1 rows refused,"]
