"""Recipes of the shortest trainings: what all of them need, and what the tests of one say in other words."""

from collections.abc import Mapping
from typing import Any, Final

import yaml

from medssl_cli.recipe import PretrainRecipe, TaskRecipe, validate_recipe

SHORTEST: Final = {"schema": 1, "optimizer": {"learning_rate": 1e-3}, "steps": 1}
TINY_UNET: Final = {"name": "unet", "channels": [4, 8], "strides": [1, 2], "num_res_units": 1}
BALLS: Final = {"name": "segmentation", "classes": {1: "ball_1", 2: "ball_2"}}
"""The task of `tests.toy_cache`."""
CT: Final = {"modality": "CT", "window_hu": [-200, 300]}


def task_recipe(document: Mapping[str, Any]) -> TaskRecipe:
    """A recipe of a task; its steps, optimiser and name may be left out."""
    found = validate_recipe({**SHORTEST, "name": "toy", **document}, source="test")
    assert isinstance(found, TaskRecipe)
    return found


def pretrain_recipe(document: Mapping[str, Any]) -> PretrainRecipe:
    """A recipe of a pre-training; its steps and optimiser may be left out."""
    found = validate_recipe({**SHORTEST, **document}, source="test")
    assert isinstance(found, PretrainRecipe)
    return found


def balls_yaml(**changes: Any) -> str:
    """A recipe file for the balls of `tests.toy_cache`, some of its sections replaced."""
    data = {**CT, "crop_size": [8, 8, 8], "batch_size": 1}
    document = {**SHORTEST, "name": "balls", "backbone": TINY_UNET, "task": BALLS, "data": data, **changes}
    return str(yaml.safe_dump(document, sort_keys=False))
