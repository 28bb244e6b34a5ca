"""Rules of the house that no linter knows. Every glob asserts a minimum, so that no guard guards nothing."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from medssl_cli.base.codes import CODES

PACKAGE = Path(__file__).parents[2] / "medssl_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_the_guards_see_the_package() -> None:
    assert len(MODULES) > 60


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_no_longer_than_one_idea(path: Path) -> None:
    """Functions have the real budget; no file is split to obey this one."""
    limit = 120 if path.parent.name == "cli" else 500
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def test_functions_are_short() -> None:
    long = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                statements = sum(isinstance(child, ast.stmt) for child in ast.walk(node)) - 1
                if statements > 40:
                    long.append(f"{path.relative_to(PACKAGE)}:{node.name} has {statements} statements")
    assert not long


def test_every_public_function_and_class_has_a_docstring() -> None:
    bare = []
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if is_definition and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(PACKAGE)}:{node.name}")
    assert not bare


FRAGMENT = re.compile(r"^(?:\s+\*{0,2}\w+: )?Of ")


def _texts(tree: ast.AST) -> Iterator[str]:
    """Docstrings, texts below constants, and helps of options."""
    for node in ast.walk(tree):
        given = (
            node.value if isinstance(node, ast.Expr) or (isinstance(node, ast.keyword) and node.arg == "help") else None
        )
        if isinstance(given, ast.Constant) and isinstance(given.value, str):
            yield given.value


def test_documentation_names_things_in_whole_phrases() -> None:
    """`seed: Of the shuffle.` leaves the noun to the reader; `Seed of the shuffle.` does not."""
    read, fragments = 0, []
    for path in MODULES:
        for text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
            read += 1
            found = [line.strip() for line in text.splitlines() if FRAGMENT.match(line)]
            fragments += [f"{path.relative_to(PACKAGE)}: {line}" for line in found]
    assert read > 1000
    assert not fragments


EACH_METHOD_HAS = ("Method", "Options")  # what a method is found by


def test_a_class_name_is_one_thing_in_the_whole_product() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in EACH_METHOD_HAS:
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert len(places) > 300
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_module_imports_one_that_imports_it() -> None:
    """However late, and for types only: a circle says that something lies in the wrong module."""
    named = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    named = {name.removesuffix(".__init__"): path for name, path in named.items()}
    imports = {name: set(imported_by(path, named)) for name, path in named.items()}
    assert sum(map(len, imports.values())) > 1000

    while leaves := {name for name, others in imports.items() if not others & imports.keys()}:
        imports = {name: others for name, others in imports.items() if name not in leaves}
    while tops := imports.keys() - set().union(*imports.values()):
        imports = {name: others for name, others in imports.items() if name not in tops}

    assert sorted(imports) == []


def imported_by(path: Path, named: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in named else node.module


def test_only_the_command_line_reads_the_environment_and_prints() -> None:
    pattern = re.compile(r"os\.environ|os\.getenv|(?<![.\w])print\(")
    found = [
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if path.parent.name != "cli" and pattern.search(path.read_text(encoding="utf-8"))
    ]
    allowed = ("demo/", "offline.py")  # the last writes it, for libraries that are not loaded yet
    assert not [name for name in found if not name.startswith(allowed)]


def test_nothing_is_pickled_or_evaluated() -> None:
    pattern = re.compile(r"\bpickle\b(?!d)|joblib|allow_pickle=True|(?<![.\w])eval\(|extractall|shell=True")
    assert not [str(path) for path in MODULES if pattern.search(path.read_text(encoding="utf-8"))]


def test_tables_are_written_in_one_place() -> None:
    """Where text that others chose is made harmless for spreadsheets."""
    users = [path for path in MODULES if re.search(r"csv\.(writer|DictWriter)", path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(PACKAGE)) for path in users] == ["base/csv_text.py"]


def test_torch_loads_in_one_place_and_weights_only() -> None:
    word = re.compile(r"torch\.load\b|torch\.serialization|from torch import .*\bload\b|import torch as")
    users = [path for path in MODULES if word.search(path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(PACKAGE)) for path in users] == ["engine/weights/reading.py"]
    calls = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(ast.parse(users[0].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert [call["weights_only"] for call in calls] == ["True"]
    assert users[0].read_text(encoding="utf-8").count("torch.load") == 1


def test_every_code_in_the_source_is_registered_and_every_registered_code_is_explained() -> None:
    used = {
        code
        for path in MODULES
        if path.parent.name != "codes"
        for code in re.findall(r"\"([EWS]_[A-Z0-9_]+)\"", path.read_text(encoding="utf-8"))
    }
    assert len(used) > 30
    assert used <= set(CODES)
    assert all(len(code.meaning) > 10 and len(code.remedy) > 6 for code in CODES.values())


def test_there_is_one_training_loop() -> None:
    loops = [path for path in MODULES if "fabric.backward(" in path.read_text(encoding="utf-8")]
    assert [str(path.relative_to(PACKAGE)) for path in loops] == ["engine/trainer.py"]


LIGHT = ("imaging", "formats", "cache", "ingest", "metrics", "report", "service")
LIGHT_PARTS = ("decode.py", "page.py")
"""Of every task."""
LIGHT_FILES = (
    "deploy/infer.py",
    "deploy/watching.py",
    "deploy/runtime.py",
    "deploy/bundle.py",
    "deploy/outputs.py",
    "deploy/model_store.py",
    "cli/app.py",
)


def test_torch_is_imported_by_nothing_that_ingest_or_infer_loads() -> None:
    """In one process, so that the test takes seconds; the first module that brings torch along is named."""
    paths = [path for room in LIGHT for path in sorted((PACKAGE / room).rglob("*.py"))]
    paths += [PACKAGE / file for file in LIGHT_FILES] + [
        path for part in LIGHT_PARTS for path in sorted((PACKAGE / "tasks").glob(f"*/{part}"))
    ]
    names = [
        ".".join(("medssl_cli", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in paths
    ]
    assert len(names) > 100
    assert len([name for name in names if ".tasks." in name]) >= 6
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if {'torch', 'monai', 'lightning_fabric'} & set(sys.modules): sys.exit(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
