"""What is said where a recipe takes images for what they are not known to be."""

from pathlib import Path

import pytest

from medssl_cli.data.selection import say_misfits
from medssl_cli.preprocessing import Preprocessing
from tests.finding_cache import finding_cache
from tests.listener import Listener

PICTURE, VOLUME = (8, 8, 1), (8, 8, 8)
WINDOW, SPACING = {"window_hu": (-175, 250)}, {"zscore": True, "spacing_mm": (2.0, 2.0, 2.0)}


@pytest.mark.parametrize(
    ("modality", "shape", "rule", "said"),
    [
        ("MR", VOLUME, WINDOW, ["W_NOT_HU: 4 MR of 4 images"]),
        ("CT", VOLUME, WINDOW, []),
        ("unknown", VOLUME, WINDOW, []),
        ("MR", VOLUME, SPACING, []),
        ("MR", VOLUME, {"channels": [{"name": "ct", **WINDOW}]}, []),
        ("DX", PICTURE, SPACING, ["W_NO_SPACING: 4 of 4 images"]),
        ("DX", PICTURE, {"zscore": True}, []),
    ],
)
def test_what_a_recipe_takes_for_something_else_is_said(
    tmp_path: Path, modality: str, shape: tuple[int, int, int], rule: dict[str, object], said: list[str]
) -> None:
    cache, heard = finding_cache(tmp_path, num_patients=2, shape=shape, modality=modality), Listener()
    say_misfits(cache.entries(), Preprocessing.model_validate(rule), heard)

    assert len(heard.notes) == len(said)
    assert all(text.startswith(start) for text, start in zip(heard.notes, said, strict=True))
