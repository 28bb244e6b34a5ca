"""The page of the toy task."""

from collections.abc import Mapping
from typing import Any

from medssl_cli.report.page import Page


def estimate_page(document: Mapping[str, Any]) -> str:
    return Page("Estimate", document["model"]).key_values({"agreement": document["agreement"]}).render()
