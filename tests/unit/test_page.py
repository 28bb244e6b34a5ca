"""The HTML page: well formed, self-contained, escaped, and readable by people and screen readers."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from medssl_cli.metrics.statistics import Estimate
from medssl_cli.report.page import Figure, Page
from medssl_cli.report.style import STYLE

VOID = {"meta", "img", "br", "hr", "link"}
SVG = (
    b'<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg"><metadata>who</metadata>'
    b'<defs><path id="m1"/></defs><use href="#m1" clip-path="url(#m1)"/></svg>'
)
NASTY = "<script>alert(\"1\")</script> & 'x'"


class Outline(HTMLParser):
    """Elements in the order of their start tags, and a check that each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def cells_of(page: Page) -> list[str]:
    return re.findall(r"<td[^>]*>(.*?)</td>", page.render())


def everything() -> Page:
    return (
        Page("Title", "made by `medssl`")
        .heading("One")
        .paragraph("Some `code`")
        .notice("Careful", kind="warning")
        .table(["name", "Dice"], [["a", 0.5], ["b", math.nan]], caption="Scores")
        .key_values({"patients": 3})
        .code("medssl ingest ./dicoms")
        .figure(Image.new("RGB", (4, 2)), alt="a picture", caption="what it is")
        .figures([Figure(SVG, "a plot"), Figure(SVG, "another")])
    )


def test_the_page_is_well_formed_and_says_its_language():
    outline = Outline(everything().render())

    assert everything().render().startswith("<!doctype html>")
    assert outline.all("html") == [{"lang": "en"}]
    assert len(outline.all("h1")) == len(outline.all("main")) == len(outline.all("title")) == 1


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs():
    outline = Outline(everything().render())

    sources = [attributes.get(name) for _, attributes in outline.elements for name in ("src", "href", "xlink:href")]
    used = [source for source in sources if source]
    assert len(used) >= 3
    assert all(source.startswith(("data:", "#")) for source in used)
    assert not outline.all("script")
    assert not outline.all("link")
    assert "url(http" not in STYLE
    assert "@import" not in STYLE


@pytest.mark.parametrize(
    "page",
    [
        Page(NASTY, NASTY),
        Page("t").heading(NASTY),
        Page("t").heading(NASTY).heading("b").heading("c").heading("d"),
        Page("t").paragraph(NASTY),
        Page("t").paragraph(f"`{NASTY}`"),
        Page("t").notice(NASTY),
        Page("t").table([NASTY], [[NASTY]], caption=NASTY),
        Page("t").key_values({NASTY: NASTY}),
        Page("t").code(NASTY, caption=NASTY),
        Page("t").figure(Image.new("L", (2, 2)), alt=NASTY, caption=NASTY),
        Page("t").figure(SVG, alt=NASTY, caption=NASTY),
    ],
)
def test_every_text_is_escaped(page):
    outline = Outline(page.render())

    assert not outline.all("script")
    alternatives = [a.get("alt") or a.get("aria-label") for tag, a in outline.elements if tag in {"img", "svg"}]
    assert NASTY in outline.text or NASTY in alternatives


def test_code_between_backticks_is_set_as_code():
    assert "<p>run <code>medssl &lt;x&gt;</code> now</p>" in Page("t").paragraph("run `medssl <x>` now").render()


def test_pictures_are_inside_the_page_unchanged_and_described():
    picture = Image.effect_noise((8, 5), 50).convert("RGB")
    (image,) = Outline(Page("t").figure(picture, alt="noise").render()).all("img")

    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == picture.tobytes()
    assert (image["alt"], image["width"], image["height"]) == ("noise", "8", "5")


def test_plots_become_part_of_the_page_with_identifiers_of_their_own():
    text = Page("t").figures([Figure(SVG, "first"), Figure(SVG, "second")]).render()
    outline = Outline(text)

    identifiers = [attributes["id"] for attributes in outline.all("path")]
    assert identifiers == ["f1-m1", "f2-m1"]
    assert [use["href"] for use in outline.all("use")] == ["#f1-m1", "#f2-m1"]
    assert [use["clip-path"] for use in outline.all("use")] == ["url(#f1-m1)", "url(#f2-m1)"]
    assert [(svg["role"], svg["aria-label"]) for svg in outline.all("svg")] == [("img", "first"), ("img", "second")]
    assert "<?xml" not in text
    assert "who" not in text


def test_numbers_are_aligned_and_rounded_and_text_is_not():
    page = Page("t").table(
        ["name", "Dice", "HD95", "n", "share"], [["aorta", 0.87654, 3.14159, 1234, "99.9 %"]], decimals={"HD95": 1}
    )

    assert cells_of(page) == ["aorta", "0.877", "3.1", "1,234", "99.9 %"]
    classes = [cell.get("class") for cell in Outline(page.render()).all("td")]
    assert classes == [None, "number", "number", "number", "number"]


@pytest.mark.parametrize("value", [None, math.nan, Estimate(math.nan, math.nan, math.nan, 0.95, 0, 3)])
def test_what_is_not_applicable_says_so(value):
    assert "n/a" in cells_of(Page("t").table(["Dice"], [[value]]))[0]


def test_an_estimate_is_shown_with_its_interval_if_it_has_one():
    known = Estimate(0.85, 0.8, 0.9, 0.95, 12, 0)
    unknown = Estimate(0.85, math.nan, math.nan, 0.95, 1, 0)

    cells = cells_of(Page("t").table(["Dice"], [[known], [unknown]], decimals={"Dice": 2}))

    assert [re.sub("<[^>]*>", " ", cell).split() for cell in cells] == [["0.85", "0.80", "to", "0.90"], ["0.85"]]


def test_a_row_with_too_few_cells_is_refused():
    with pytest.raises(ValueError, match="2 cells"):
        Page("t").table(["a", "b"], [[1]])


def test_long_pages_begin_with_links_to_their_sections():
    page = Page("t")
    for name in ("Cohort", "Training", "Scores", "Commands"):
        page.heading(name)
    outline = Outline(page.render())

    links = [link["href"] for link in outline.all("a")]
    assert links == [f"#{heading['id']}" for heading in outline.all("h2")]
    assert len(links) == 4


def test_the_same_blocks_give_the_same_bytes():
    assert everything().render() == everything().render()


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", WCAG 2.2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes() -> list[dict[str, str]]:
    """Variables of the light, dark and printed page."""
    found = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)]
    assert len(found) == 3
    return found


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark", "print"])
def test_text_has_the_contrast_that_accessibility_guidelines_ask_for(theme):
    for ink in ("ink", "quiet", "accent", "info", "good", "warning", "bad"):
        for ground in ("page", "card"):
            assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)  # WCAG 2.2, 1.4.3, level AA
