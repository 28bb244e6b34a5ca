"""One HTML page in one file: what a command found out, with its tables, pictures and plots.

Nothing is loaded from elsewhere: styles, pictures and plots are inside. Nothing runs but the script of a slice viewer,
where there is one; the page's own content security policy forbids everything else. The page follows the reader's light
or dark setting, prints, and can be read aloud. Every text is escaped.
"""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Self
from urllib.parse import quote

from PIL import Image

from medssl_cli.metrics.statistics import Estimate
from medssl_cli.report import Colour
from medssl_cli.report.style import STYLE
from medssl_cli.report.viewer import Scene, Shows, script, script_digest, viewer_block

Kind = Literal["info", "good", "warning", "bad"]


@dataclass(frozen=True)
class Link:
    """A cell that leads to a file beside the page.

    Args:
        text: What is read.
        name: Name of the file; without one the cell is empty.
    """

    text: str
    name: str


Cell = str | int | float | Estimate | Link | None

NOTICE_TITLES: Final[Mapping[Kind, str]] = {"info": "Note", "good": "Passed", "warning": "Caution", "bad": "Failed"}
NOT_APPLICABLE: Final = "n/a"
NUMBER_TEXT: Final = re.compile(r"[<>≤≥±]?\s*[-+−]?\d[\d,.]*(\s?%)?")
DECIMALS: Final = 3
POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
CONTENTS_FROM: Final = 4
"""Pages with at least so many sections begin with a list of them."""


@dataclass(frozen=True)
class Figure:
    """A picture or a plot with the words that belong to it.

    Args:
        content: A picture, or the bytes of an SVG from `report.plots`. SVG becomes part of the page as it is, so it
            must never come from a user.
        alt: What it shows, for those who do not see it.
        caption: Shown below; `code` between backticks.
    """

    content: Image.Image | bytes
    alt: str
    caption: str = ""


@dataclass
class Page:
    """A page that is put together block by block; every method returns the page, so that calls can be chained.

    Args:
        title: Title of the window and of the page.
        subtitle: One line below it, for example the version and the command.
        generator: What made the page, if its files are known by that.
    """

    title: str
    subtitle: str = ""
    generator: str = ""
    _blocks: list[str] = field(default_factory=list, init=False)
    _sections: list[tuple[str, str]] = field(default_factory=list, init=False)
    _num_figures: int = field(default=0, init=False)
    _has_viewer: bool = field(default=False, init=False)

    def heading(self, text: str) -> Self:
        """Begin a section."""
        identifier = f"section-{len(self._sections) + 1}"
        self._sections.append((identifier, text))
        return self._add(f'<h2 id="{identifier}">{_escaped(text)}</h2>')

    def paragraph(self, text: str) -> Self:
        """Add running text; `code` between backticks."""
        return self._add(f"<p>{_inline(text)}</p>")

    def notice(self, text: str, *, kind: Kind = "info") -> Self:
        """Add text that must not be overlooked; `code` between backticks."""
        return self._add(
            f'<div class="notice {kind}" role="note"><strong>{NOTICE_TITLES[kind]}</strong><p>{_inline(text)}</p></div>'
        )

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Cell]],
        *,
        caption: str = "",
        decimals: Mapping[str, int] | None = None,
    ) -> Self:
        """Add a table. Columns of numbers are aligned on the right; NaN and None read "n/a".

        Args:
            columns: Their headings.
            rows: One cell per column: text, a number, or an estimate, shown as mean and interval.
            caption: What the table shows.
            decimals: Column to the decimals of its fractions; 3 where not given.

        Raises:
            ValueError: A row has another length than `columns`.
        """
        cells = [list(row) for row in rows]
        if any(len(row) != len(columns) for row in cells):
            raise ValueError(f"every row needs {len(columns)} cells")
        places = [(decimals or {}).get(name, DECIMALS) for name in columns]
        is_number = [any(_is_number(row[index]) for row in cells) for index in range(len(columns))]
        head = "".join(
            f'<th scope="col"{_class(number=number)}>{_escaped(name)}</th>'
            for name, number in zip(columns, is_number, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{_class(number=is_number[i])}>{_shown(cell, places[i])}</td>" for i, cell in enumerate(row_cells)
            )
            + "</tr>"
            for row_cells in cells
        )
        title = f"<caption>{_inline(caption)}</caption>" if caption else ""
        return self._add(
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def key_values(self, pairs: Mapping[str, Cell]) -> Self:
        """Add names with their values, for settings and facts."""
        items = "".join(
            f"<div><dt>{_escaped(key)}</dt><dd>{_shown(value, DECIMALS)}</dd></div>" for key, value in pairs.items()
        )
        return self._add(f"<dl>{items}</dl>")

    def code(self, text: str, *, caption: str = "") -> Self:
        """Add commands or output, as they are."""
        label = f'<p class="label">{_inline(caption)}</p>' if caption else ""
        return self._add(f'{label}<pre tabindex="0"><code>{_escaped(text)}</code></pre>')

    def figure(self, content: Image.Image | bytes, *, alt: str, caption: str = "") -> Self:
        """Add one picture or plot (see `Figure`)."""
        return self.figures([Figure(content, alt, caption)], columns=1)

    def figures(self, figures: Iterable[Figure], *, columns: int = 2) -> Self:
        """Add pictures or plots side by side, fewer beside one another where the window is narrow.

        Args:
            figures: Figures in reading order.
            columns: Largest number of them beside one another.
        """
        drawn = "".join(self._drawn(figure) for figure in figures)
        return self._add(f'<div class="grid columns-{min(max(columns, 1), 4)}">{drawn}</div>')

    def viewer(
        self,
        scenes: Sequence[tuple[str, Scene]],
        classes: Mapping[int, str],
        *,
        shows: Shows = "both",
        colours: Mapping[int, Colour] | None = None,
    ) -> Self:
        """Add a slice viewer.

        Args:
            scenes: Titles and images, the one seen first in front.
            classes: Names by label value, or of boxes.
            shows: What lies over the images.
            colours: Colours of classes, instead of those of the palette.
        """
        self._has_viewer = True
        return self._add(viewer_block(scenes, classes, shows=shows, colours=colours))

    def render(self) -> str:
        """The page as one HTML document."""
        contents = ""
        if len(self._sections) >= CONTENTS_FROM:
            links = "".join(f'<li><a href="#{anchor}">{_escaped(text)}</a></li>' for anchor, text in self._sections)
            contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
        subtitle = f'<p class="subtitle">{_inline(self.subtitle)}</p>' if self.subtitle else ""
        body = "\n".join(self._blocks)
        generator = f'<meta name="generator" content="{_escaped(self.generator)}">\n' if self.generator else ""
        runs = f"<script>{script()}</script>\n" if self._has_viewer else ""
        allowed = f"; script-src 'sha256-{script_digest()}'" if self._has_viewer else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f"{generator}"
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}{allowed}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{_escaped(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<header><h1>{_escaped(self.title)}</h1>{subtitle}{contents}</header>\n<main>\n{body}\n</main>\n"
            f"{runs}</body>\n</html>\n"
        )

    def _add(self, block: str) -> Self:
        self._blocks.append(block)
        return self

    def _drawn(self, figure: Figure) -> str:
        self._num_figures += 1
        caption = f"<figcaption>{_inline(figure.caption)}</figcaption>" if figure.caption else ""
        if isinstance(figure.content, bytes):
            return f"<figure>{_inline_svg(figure.content, figure.alt, f'f{self._num_figures}-')}{caption}</figure>"
        source = base64.b64encode(_png(figure.content)).decode("ascii")
        width, height = figure.content.size
        return (
            f'<figure><img src="data:image/png;base64,{source}" width="{width}" height="{height}" '
            f'alt="{_escaped(figure.alt)}" loading="lazy">{caption}</figure>'
        )


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def _inline(text: str) -> str:
    """Escape a text and set what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escaped(text))


def _value(cell: Cell) -> float | None:
    """The number that a cell holds, if it holds one."""
    if cell is None or isinstance(cell, str | bool | Link):
        return None
    number = float(cell.mean if isinstance(cell, Estimate) else cell)
    return None if math.isnan(number) else number


def _is_number(cell: Cell) -> bool:
    """Whether a cell is a number or text that reads like one ("1,234", "99.9 %", "-0.5")."""
    return _value(cell) is not None or (isinstance(cell, str) and NUMBER_TEXT.fullmatch(cell) is not None)


def _shown(cell: Cell, decimals: int) -> str:
    if isinstance(cell, str):
        return _inline(cell)
    if isinstance(cell, Link):
        return f'<a href="{_escaped(quote(f"./{cell.name}"))}">{_escaped(cell.text)}</a>' if cell.name else ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Estimate) and not math.isnan(cell.mean):
        interval = "" if math.isnan(cell.low) else f"{cell.low:.{decimals}f} to {cell.high:.{decimals}f}"
        return f'{cell.mean:.{decimals}f}<span class="interval">{interval}</span>'
    number = _value(cell)
    if number is None:
        return f'<span class="missing">{NOT_APPLICABLE}</span>'
    return f"{cell:,}" if isinstance(cell, int) else f"{number:.{decimals}f}"


def _class(*, number: bool) -> str:
    return ' class="number"' if number else ""


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _inline_svg(svg: bytes, alt: str, prefix: str) -> str:
    """The `<svg>` element alone, named for screen readers, its identifiers made unique on the page."""
    text = svg.decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{_escaped(alt)}"', 1).strip()
