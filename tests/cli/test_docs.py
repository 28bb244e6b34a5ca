"""The documentation is true: its commands parse, its links lead somewhere, its recipes load, its code is the code."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from medssl_cli.base.plain_yaml import parse_yaml
from medssl_cli.cli.app import app
from medssl_cli.recipe import recipe_names, validate_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [page for page in PAGES if page.parent.name not in ("reference", "results")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]+)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return [body for name, body in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every `medssl` command that a page shows, in a `sh` block or between backticks in the text."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(medssl [^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["medssl"]:
                yield words[1:]


def parse(words: list[str]) -> None:
    """Find the command and let it read its arguments, without running it. A command alone is only looked up."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    if hasattr(command, "commands"):
        assert set(words) <= {*known, "--help"}
    elif words and words != ["--help"]:
        command.make_context("medssl", list(words))


def test_the_guards_see_the_documentation() -> None:
    assert len(PAGES) >= 25
    assert sum(len(list(commands(page))) for page in WRITTEN) > 40
    assert sum(len(LINK.findall(page.read_text(encoding="utf-8"))) for page in PAGES) > 40


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(KeyError):
        parse(["injest", "./dicoms"])
    with pytest.raises(Exception, match="--modalities"):
        parse(["ingest", "./dicoms", "--modalities", "CT"])


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_commands(page: Path) -> None:
    for words in commands(page):
        parse(words)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]

    assert not missing


@each_page
def test_recipes_are_valid(page: Path) -> None:
    for text in blocks(page, "yaml"):
        if re.search(r"^schema:", text, re.MULTILINE):
            validate_recipe(parse_yaml(text, source=page.name), source=page.name)


def test_the_readme_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    first = text.index("pip install . && medssl demo")
    second = text.index("pip install -e '.[dev]' && pytest")

    assert first < second < text.index("\n## ")


def test_every_shipped_recipe_is_described_by_hand() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in WRITTEN)

    names = [*recipe_names("pretrain"), *recipe_names("tasks")]

    assert len(names) >= 4
    assert not [name for name in names if f"`{name}`" not in text]


def test_the_guide_to_a_method_shows_the_method_that_is_tested() -> None:
    guide = ROOT / "docs" / "guides" / "add-a-method.md"
    toy = ROOT / "tests" / "contract" / "toy_methods" / "denoise.py"

    assert blocks(guide, "python") == [toy.read_text(encoding="utf-8")]


def test_the_guide_to_a_format_shows_the_format_that_is_tested() -> None:
    guide = ROOT / "docs" / "guides" / "add-a-format.md"
    toy = ROOT / "tests" / "contract" / "toy_formats" / "plaintext.py"

    assert blocks(guide, "python") == [toy.read_text(encoding="utf-8")]


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text(encoding="utf-8"))}
    pages = {page for page in PAGES if page.parent.name != "results"} - {index, ROOT / "README.md"}

    assert not sorted(str(page.relative_to(ROOT)) for page in pages - linked)


def test_every_decision_has_context_decision_and_consequences() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))

    assert len(decisions) >= 11
    for page in decisions:
        assert re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE) == [
            "Context",
            "Decision",
            "Consequences",
        ]
