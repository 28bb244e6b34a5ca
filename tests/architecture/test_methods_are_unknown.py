"""No room but `methods/` knows one method: neither by an import nor by its name in a string.

Docstrings are left out: they cite papers. What may name a method, or still does, is listed by file; an entry that is no
longer needed must go, so that the list can only shrink.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from medssl_cli.base import plugins

PACKAGE = Path(__file__).parents[2] / "medssl_cli"
NAMES = plugins.names("method")
COMMON = frozenset({"local", "position"})
"""Methods called by a word that everybody uses: a string names one only where it is the word and nothing else."""
WORD = re.compile(
    rf"(?<![A-Za-z])({'|'.join(sorted({*NAMES} - COMMON))}|deepcluster|vocomni)(?![A-Za-z])", re.IGNORECASE
)
MAY = {
    "cli/pretrain.py": "the recipe that is trained where none is named",
    "cli/recipes_plan.py": "the recipe that is planned where none is named",
    "cli/weights.py": "published checkpoints, by the names that their authors gave them",
    "engine/weights/importing.py": "published checkpoints, by the names that their authors gave them",
    "demo/": "a road through the whole product: it chooses",
    "base/codes/commands.py": "the remedy of a code names the page about published weights",
}
DEBTS: dict[str, str] = {}


def strings_of(tree: ast.AST) -> Iterator[str]:
    """String constants that are not documentation."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported, by their whole names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_other_room_names_a_method() -> None:
    outside = [path for path in sorted(PACKAGE.rglob("*.py")) if "methods" not in path.relative_to(PACKAGE).parts]
    own = {f"medssl_cli.methods.{name}" for name in NAMES}
    named: dict[str, list[str]] = {}
    for path in outside:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [name for name in imports_of(tree) if any(name == one or name.startswith(f"{one}.") for one in own)]
        found += [text for text in strings_of(tree) if text in COMMON or WORD.search(text)]
        if found:
            named[path.relative_to(PACKAGE).as_posix()] = found
    listed = MAY | DEBTS

    assert len(outside) > 200
    assert len(NAMES) >= 4
    assert {name: texts for name, texts in named.items() if not name.startswith(tuple(listed))} == {}
    assert [entry for entry in listed if not any(name.startswith(entry) for name in named)] == []
