"""A hint names options that the command which prints it has, whatever part of the program the refusal comes from.

Which parts a command can reach is read from the imports of its module and of all that it imports, those inside of
functions included, those for types alone left out; so a reader that two commands share must give hints that are right
for both.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from medssl_cli.base.codes import CODES
from medssl_cli.cli.app import app

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"--[a-z0-9][a-z0-9-]*")
CODE = re.compile(r"[EWS]_[A-Z0-9_]+")
NEVER_GIVEN = {
    "for example --set data.batch_size=2": "only an argument of --set is refused with it",
    "or use --set compile=false": "only a command that trains compiles, and it has --set",
    "choose another --cache": "only a command that makes a cache is refused with it",
    "raise --devices": "only --strategy is refused with it, beside which --devices stands",
    "choose another folder with --run": "only a command that makes a run is refused with it, and it has --run",
    "--device cpu": "only an argument of --device is refused with it",
    "ask for fewer --patients": "only study labels has a number of patients",
    "leave --num-folds out": "only a command with --num-folds asks for a number of folds",
    "--fold takes 0 to": "only a command with --fold asks for another than the first",
    "pass --patient-pattern": "infer does not tell of notes about training data",
    "pass --modality": "infer does not tell of notes about training data",
}
"""Parts of advice that a command can reach by its imports and never gives, and why."""


def command_tree() -> dict[str, set[str]]:
    """Options of every command; a group has those of all its commands."""
    root = typer.main.get_command(app)
    return {name: options_of(command) for name, command in getattr(root, "commands", {}).items()}


def options_of(command: object) -> set[str]:
    own = {name for one in getattr(command, "params", ()) for name in (*one.opts, *one.secondary_opts)} | {"--help"}
    return own.union(*(options_of(below) for below in getattr(command, "commands", {}).values()))


@cache
def tree(module: str) -> ast.Module | None:
    path = ROOT / f"{module.replace('.', '/')}.py"
    path = path if path.exists() else ROOT / module.replace(".", "/") / "__init__.py"
    return WithoutTypes().visit(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else None


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what stands under `if TYPE_CHECKING`, which never runs."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_types else self.generic_visit(node)


def imported(module: str) -> Iterator[str]:
    found = tree(module)
    for node in ast.walk(found) if found else ():
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medssl_cli"):
            yield str(node.module)
            yield from (f"{node.module}.{one.name}" for one in node.names if tree(f"{node.module}.{one.name}"))
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.startswith("medssl_cli"))


def reachable(module: str) -> set[str]:
    seen: set[str] = set()
    ahead = [module]
    while ahead:
        one = ahead.pop()
        if one not in seen and not one.startswith("medssl_cli.base.codes"):
            seen.add(one)
            ahead += imported(one)
    return seen


def advice(module: str) -> Iterator[tuple[str, str]]:
    """Codes that a module gives, each with what it says about what to do; the remedy where it says nothing."""
    for node in ast.walk(tree(module) or ast.Module([], [])):
        if not isinstance(node, ast.Call):
            continue
        strings = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        codes = [text for text in strings if CODE.fullmatch(text) and text in CODES]
        hints = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
        said = " ".join(str(part.value) for hint in hints for part in ast.walk(hint) if isinstance(part, ast.Constant))
        for code in codes:
            yield code, said or CODES[code].remedy
    source = tree(module)
    words = [node.value for node in ast.walk(source) if isinstance(node, ast.Constant)] if source else []
    yield from ((word, CODES[word].remedy) for word in words if isinstance(word, str) and word in CODES)


# What no study that arrives over the network gives cause for: it is DICOM, and nobody names files or asks for pictures.
OUT_OF_REACH = {
    "listen": {"--split-4d", "--assume-orientation", "--nifti-affine", "--channel", "--dry-run"},
}


def faults(name: str) -> list[tuple[str, str]]:
    """Advice of a command with an option that neither it nor a command has that the advice names."""
    every = command_tree()
    found = set()
    for module in sorted(reachable(f"medssl_cli.cli.{name}")):
        for code, text in advice(module):
            if any(part in text for part in NEVER_GIVEN):
                continue
            named = [every[word] for word in re.findall(r"medssl ([a-z]+)", text) if word in every]
            if not set(OPTION.findall(text)) <= every[name].union(OUT_OF_REACH.get(name, set()), *named):
                found.add((code, text))
    return sorted(found)


# The demo runs other commands, whose hints are their own; cache reads only files that it has written.
COMMANDS = sorted(set(command_tree()) - {"demo", "cache"})


@pytest.mark.parametrize("name", COMMANDS)
def test_hints_name_options_that_the_command_has(name: str) -> None:
    assert reachable(f"medssl_cli.cli.{name}") > {f"medssl_cli.cli.{name}"}
    assert faults(name) == []


def test_the_guard_sees_what_is_imported_inside_of_functions() -> None:
    seen = reachable("medssl_cli.cli.infer")

    assert {"medssl_cli.formats.nifti_header", "medssl_cli.formats.dicom.gate"} <= seen
    assert len(COMMANDS) > 8
    assert any("--tilt=resample" in text for module in seen for _, text in advice(module))
    assert any("--split-4d" in text for module in seen for _, text in advice(module))


def test_every_exception_from_the_rule_is_needed() -> None:
    texts = {text for name in COMMANDS for module in reachable(f"medssl_cli.cli.{name}") for _, text in advice(module)}

    assert [part for part in NEVER_GIVEN if not any(part in text for text in texts)] == []
