"""YAML as plain data: no tags, no aliases, no repeated keys, bounded size and depth. Recipes are untrusted input."""

import math
from collections import Counter
from typing import Any, Final

import yaml

from medssl_cli.base.errors import UsageError

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 20
MAX_INTEGER: Final = 2**63


class _Loader(yaml.SafeLoader):
    """Plain data only: no aliases, tags or duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_tagged = getattr(event, "tag", None) is not None
        fault = "aliases" if isinstance(event, yaml.AliasEvent) else "tags" if is_tagged else ""
        if fault:
            raise yaml.MarkedYAMLError(problem=f"{fault} are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: Any) -> int:
        try:
            value = int(super().construct_yaml_int(node))
        except ValueError:  # of thousands of digits, or of none
            value = MAX_INTEGER
        if abs(value) >= MAX_INTEGER:
            raise yaml.MarkedYAMLError(problem="a whole number that 64 bits cannot hold", problem_mark=node.start_mark)
        return value

    def construct_yaml_float(self, node: Any) -> float:
        value = float(super().construct_yaml_float(node))
        if not math.isfinite(value):
            raise yaml.MarkedYAMLError(problem="a number that is not finite", problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            counts = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
            repeated = ", ".join(sorted(str(key) for key, count in counts.items() if count > 1))
            raise yaml.MarkedYAMLError(problem=f"repeated key: {repeated}", problem_mark=node.start_mark)
        return mapping


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def parse_yaml(text: str, *, source: str) -> dict[str, Any]:
    """Parse a recipe's text.

    Raises:
        UsageError: `E_RECIPE` if it is too large, too deep, not a mapping or uses YAML beyond plain data.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise UsageError("E_RECIPE", f"{source} is larger than {MAX_BYTES // 1024} KB")
    try:
        document = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError("E_RECIPE", f"{source} is not plain YAML: {_reason(error)}") from error
    if not isinstance(document, dict):
        raise UsageError("E_RECIPE", f"{source} must be a mapping of keys to values")
    if _depth(document) > MAX_DEPTH:
        raise UsageError("E_RECIPE", f"{source} is nested deeper than {MAX_DEPTH} levels")
    return document


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"{problem} (line {mark.line + 1})" if mark else str(problem)


def _depth(node: Any) -> int:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return 1 + max((_depth(child) for child in children), default=0)
