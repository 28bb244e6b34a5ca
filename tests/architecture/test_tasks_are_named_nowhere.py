"""No room outside `tasks/` names a task: not in an import, a string, a name of its own, or the name of a file.

Docstrings and comments may. Words that mean something else are listed here, and the list can only become shorter.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from medssl_cli.base import plugins

PACKAGE = Path(__file__).parents[2] / "medssl_cli"
TASKS = plugins.names("task")
ROOMS: Final = ("tasks", "demo")
"""Where tasks are named: their own room, and the demo, which shows some of them."""
OTHER_MEANINGS: Final = {
    "base/codes/commands.py": "W_EMPTY_SEGMENTATION is a code of masks that infer writes; codes keep their names",
    "base/codes/inputs.py": "a kind of DICOM object",
    "base/codes/labels.py": "a kind of DICOM object",
    "deploy/mask_files.py": "a kind of DICOM object that infer writes, and W_EMPTY_SEGMENTATION",
    "formats/dicom/objects.py": "a kind of DICOM object",
    "formats/dicom/tags.py": "a kind of DICOM object",
    "formats/dicom_seg.py": "a kind of DICOM object",
    "formats/dicom_sr.py": "a kind of DICOM object",
    "formats/labels/__init__.py": "a kind of DICOM object",
    "formats/labels/recognise.py": "a kind of DICOM object",
    "formats/labels/seg.py": "a kind of DICOM object",
    "formats/labels/seg_pixels.py": "a kind of DICOM object",
    "formats/layouts.py": "how people call folders of label maps",
    "formats/name_words.py": "how people call files of label maps",
    "formats/seg_frames.py": "a kind of DICOM object",
}
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in ROOMS]


def words(path: Path) -> Iterator[str]:
    """All that a module says to the machine: its path, imports, names and strings; no docstrings."""
    yield str(path.relative_to(PACKAGE))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield getattr(node, "module", None) or ""
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def named(path: Path) -> set[str]:
    return {task for word in words(path) for task in TASKS if task in word.lower()}


def test_the_guard_sees_tasks_and_modules() -> None:
    assert len(TASKS) >= 3
    assert len(MODULES) > 200
    assert named(PACKAGE / "tasks" / "segmentation" / "network.py") == {"segmentation"}


def test_no_other_room_names_a_task() -> None:
    found = {str(path.relative_to(PACKAGE)): named(path) for path in MODULES}

    assert {name: tasks for name, tasks in found.items() if tasks and name not in OTHER_MEANINGS} == {}


@pytest.mark.parametrize("name", OTHER_MEANINGS)
def test_what_is_listed_is_still_there(name: str) -> None:
    assert named(PACKAGE / name), f"take {name} off the list"
