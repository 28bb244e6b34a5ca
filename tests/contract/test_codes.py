"""The registry of codes is the program's: each is given somewhere, tested somewhere, explained, and says what to do."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import MedsslError
from medssl_cli.cli.app import app
from medssl_cli.cli.boundary import report

ROOT = Path(__file__).parents[2]
MODULES = [path for path in (ROOT / "medssl_cli").rglob("*.py") if path.parent.name != "codes"]
TESTS = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
WORD = re.compile(r"\b[EWS]_[A-Z0-9]+(?:_[A-Z0-9]+)*\b")
IN_USE = [name for name, code in CODES.items() if not code.is_retired]
MAX_CHARACTERS = 300
LONGEST = 45  # the longest of what messages quote: a key has 28 characters, a number 20, a class of numpy 40
FORBIDDEN = re.compile(r"%[sdr]|\bNone\b|<class|\bndarray\b|\bdict\b|\btuple\b|\bNoneType\b")


def words_of(path: Path) -> set[str]:
    """Codes in the strings of a module, docstrings and comments left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in said)
    return {word for node in strings if isinstance(node.value, str) for word in WORD.findall(node.value)}


def rendered(message: ast.expr) -> str | None:
    """A message as the program would write it with the longest values; None if it is a variable."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.BinOp):
        return (rendered(message.left) or "") + (rendered(message.right) or "")
    if not isinstance(message, ast.JoinedStr):
        return None
    parts = []
    for part in message.values:
        if isinstance(part, ast.FormattedValue) and part.format_spec is not None:
            parts.append(_extreme(rendered(part.format_spec) or ""))
        else:
            parts.append(str(part.value) if isinstance(part, ast.Constant) else "9" * LONGEST)
    return "".join(parts)


def _extreme(spec: str) -> str:
    return format(-(2**63) if spec[-1:] in "xXdb" else -1e15 / 3, spec)


def raised() -> Iterator[tuple[str, str, str]]:
    """Place, code and message of every call whose first argument is a code."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or len(node.args) < 2 or not isinstance(node.args[0], ast.Constant):
                continue
            code, message = node.args[0].value, rendered(node.args[1])
            if isinstance(code, str) and WORD.fullmatch(code) and message is not None:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", code, message


def test_every_code_that_is_not_retired_is_given_by_the_program_and_no_other() -> None:
    used = set[str]().union(*map(words_of, MODULES))

    assert len(MODULES) > 150
    assert sorted(set(IN_USE) - used) == []
    assert sorted(word for word in used & set(CODES) if CODES[word].is_retired) == []
    assert sorted(used - set(CODES)) == []


def test_every_code_that_is_not_retired_is_expected_by_a_test() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in TESTS:
        for word in words_of(path):
            places[word].append(path.name)

    assert len(TESTS) > 80
    assert [code for code in IN_USE if not places[code]] == []


def test_every_message_is_short_and_made_for_people() -> None:
    found = list(raised())

    assert len(found) > 300
    assert [(place, len(message)) for place, _, message in found if len(message) > MAX_CHARACTERS] == []
    assert [(place, message) for place, _, message in found if FORBIDDEN.search(message)] == []
    assert [(place, message) for place, _, message in found if message.rstrip().endswith(".")] == []


@pytest.mark.parametrize("code", CODES)
def test_an_error_without_a_hint_says_what_to_do(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    report(MedsslError(code, "9" * MAX_CHARACTERS))

    error, hint = capsys.readouterr().err.rstrip("\n").split("\n\n")
    assert error == f"error: {code}: {'9' * MAX_CHARACTERS}"
    assert hint == f"hint: {CODES[code].remedy}"


@pytest.mark.parametrize("code", CODES)
def test_meaning_and_remedy_are_short_sentences_for_people(code: str) -> None:
    entry = CODES[code]

    assert WORD.fullmatch(code)
    assert 10 < len(entry.meaning) <= 120
    assert 6 < len(entry.remedy) <= 120
    assert entry.meaning[0].isupper()
    assert not entry.meaning.endswith(".")
    assert not entry.remedy.endswith(".")
    assert not FORBIDDEN.search(f"{entry.meaning} {entry.remedy}")


def test_remedies_name_commands_options_and_pages_that_exist() -> None:
    commands, options = set[str](), set[str]()
    collect(typer.main.get_command(app), "medssl", commands, options)
    remedies = "; ".join(code.remedy for code in CODES.values())

    named = re.findall(r"medssl (?:(?:cache|key|recipes|models) )?[a-z]+", remedies)
    assert len(named) > 10
    assert sorted({name for name in named if name not in commands}) == []
    assert sorted(set(re.findall(r"--[a-z0-9-]+", remedies)) - options - {"--help"}) == []
    assert [page for page in re.findall(r"docs/[\w./-]+\.md", remedies) if not (ROOT / page).exists()] == []


def collect(command: object, name: str, commands: set[str], options: set[str]) -> None:
    """Names of a command and of all below it, and of their options."""
    commands.add(name)
    for parameter in getattr(command, "params", ()):
        options.update((*parameter.opts, *parameter.secondary_opts))
    for child, below in getattr(command, "commands", {}).items():
        collect(below, f"{name} {child}", commands, options)
