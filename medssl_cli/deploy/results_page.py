"""One HTML page of what a call has found: every scan in a table, some of them slice by slice.

Scans are called on it as their outputs are. Where files lie, and what DICOM headers say, stays in the report.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from medssl_cli import __version__
from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import require_place_for_file, write_atomic
from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.class_words import class_colours, shown_classes
from medssl_cli.deploy.outputs import is_own
from medssl_cli.deploy.page_cases import CaseReader, ShownCase, worth_showing
from medssl_cli.deploy.results import InferReport, ScanResult
from medssl_cli.deploy.scans import Scan
from medssl_cli.formats.predictions import PAGE_GENERATOR
from medssl_cli.heads import BoxesHead, FindingsHead, Head, MasksHead
from medssl_cli.report.page import Cell, Figure, Link, Page
from medssl_cli.report.viewer import Scene

MOST_CASES: Final = 20
"""Scans that are shown slice by slice; pictures of the others are linked."""
MOST_ROWS: Final = 500
MOST_COLUMNS: Final = 12
"""Classes that have a column each."""
SCENE_BYTES: Final = 1_800_000
"""Size of the voxels of all scans together, compressed: with pictures, 20 scans take less than 5 MB of a page."""
MOST_SCENE_BYTES: Final = 600_000
"""The same of one scan among few."""
RESEARCH: Final = "Research only. Not a medical device."


def require_own_page(path: Path) -> None:
    """Refuse a name for the page that a file of somebody else has.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`, `E_OUTPUT_SPECIAL`.
    """
    require_place_for_file(path)
    if path.exists() and not is_own(path):
        raise UsageError(
            "E_OUTPUT_EXISTS",
            f"{path.name} in the output folder is not a page of medssl infer",
            hint="move it away, or choose another folder with -o",
        )


def write_page(path: Path, report: InferReport, scans: Sequence[Scan], cases: CaseReader) -> None:
    """Write the page of a call.

    Args:
        path: Its name; an earlier page is replaced.
        report: Results of the call.
        scans: Scans that they are of.
        cases: Reads those that are shown.

    Raises:
        UsageError: See `require_own_page`.
        StorageError: `E_IO`.
    """
    require_own_page(path)
    by_key = {scan.key: scan for scan in scans}
    chosen = [one for one in worth_showing(report.results) if one.key in by_key][:MOST_CASES]
    max_bytes = min(MOST_SCENE_BYTES, SCENE_BYTES // max(len(chosen), 1))
    read = {one.key: cases.read(by_key[one.key], one, max_bytes=max_bytes) for one in chosen}
    shown = {key: case for key, case in read.items() if case is not None}
    page = results_page(report, cases.bundle, shown, num_lost=len(chosen) - len(shown))
    write_atomic(path, page.encode("utf-8", "backslashreplace"), is_output=True)


def results_page(report: InferReport, bundle: Bundle, cases: Mapping[str, ShownCase], *, num_lost: int = 0) -> str:
    """HTML of a call.

    Args:
        report: Results of the call.
        bundle: Bundle of the model.
        cases: Scans that are shown, by key.
        num_lost: How many more were to be shown, whose files are not what they were or cannot be read.
    """
    done = [result for result in report.results if result.status == "done"]
    subtitle = f"medssl {__version__} · model {report.model_sha256[:12]} · {report.device}"
    page = Page(f"{report.task}: {len(done)} scan{'' if len(done) == 1 else 's'}", subtitle, generator=PAGE_GENERATOR)
    page.notice(f"{RESEARCH} Intended use, as the makers of the model say: {report.intended_use}", kind="warning")
    page.paragraph(
        "This page shows the scans themselves: it is for the people who have them. Where each file lies, and what else "
        f"is known of it, stands in `{report.path.name}` beside it."
    )
    _add_table(page, bundle.head, done)
    _add_codes(page, "Warnings", [code for result in done for code in result.warnings])
    _add_codes(page, "Refused", [result.code for result in report.results if result.status == "refused"])
    if num_lost:
        page.paragraph(
            f"Not shown, since their files have changed or cannot be read any more: {num_lost} of the scans."
        )
    _add_cases(page, bundle, [result for result in worth_showing(done) if result.key in cases], cases, len(done))
    return page.render()


def _add_table(page: Page, head: Head, done: Sequence[ScanResult]) -> None:
    """A row for each scan."""
    names = _column_names(done)
    titles, unit = _titles(head, names)
    pictures = [next((name for name in result.outputs if name.endswith(".png")), "") for result in done]
    rows: list[list[Cell]] = [
        [result.name, *_cells(head, result, names), ", ".join(result.warnings), Link("open", picture)]
        for result, picture in zip(done[:MOST_ROWS], pictures, strict=False)
    ]
    more = f" The other {len(done) - len(rows)} are in the report." if len(done) > len(rows) else ""
    if not any(pictures):
        rows = [row[:-1] for row in rows]
    page.heading("Scans").table(
        ("scan", *titles, "warnings", *(["picture"] if any(pictures) else [])),
        rows,
        caption=f"{unit}{more}",
        decimals=dict.fromkeys(names, 1),
    )


def _column_names(done: Sequence[ScanResult]) -> list[str]:
    """Names of structures or findings, which have a column each; none where there are too many."""
    names = list(dict.fromkeys(name for result in done for name in (*result.volumes_ml, *result.findings)))
    return names if len(names) <= MOST_COLUMNS else []


def _titles(head: Head, names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Columns of the answer, and what their numbers are."""
    if isinstance(head, BoxesHead):
        return ("boxes", "best", "weaker boxes"), "Boxes count that reach their operating point."
    titles = tuple(names) or ("found",)
    if isinstance(head, FindingsHead):
        return titles, "Probabilities; yes: at least the operating point."
    return titles, "Volumes in mL."


def _cells(head: Head, result: ScanResult, names: Sequence[str]) -> list[Cell]:
    """What a row says of a scan."""
    if isinstance(head, BoxesHead):
        found = [box for box in result.boxes if box["is_yes"]]
        best = f"{found[0]['class']} {found[0]['score']:.3f}" if found else ""
        return [len(found), best, len(result.boxes) - len(found)]
    if not names:
        found_names = [*(name for name, ml in result.volumes_ml.items() if ml > 0), *_positive(result)]
        return [f"{len(found_names)} of {len(result.volumes_ml) + len(result.findings)}"]
    if isinstance(head, FindingsHead):
        return [_probability(result, name) if name in result.findings else None for name in names]
    return [result.volume_text(name) if result.cut_off(name) else result.volumes_ml.get(name) for name in names]


def _positive(result: ScanResult) -> list[str]:
    """Findings that reach their operating point."""
    return [name for name, score in result.findings.items() if score >= result.thresholds.get(name, 1.0)]


def _probability(result: ScanResult, name: str) -> str:
    return f"{result.findings[name]:.3f}{' yes' if name in _positive(result) else ''}"


def _add_cases(
    page: Page, bundle: Bundle, shown: Sequence[ScanResult], cases: Mapping[str, ShownCase], num_done: int
) -> None:
    """Scans slice by slice, and a picture of each."""
    if not shown:
        return
    page.heading("Slice by slice")
    if len(shown) < num_done:
        page.paragraph(
            f"{len(shown)} of {num_done} scans, those with warnings or something found first. Pictures of the others "
            "lie beside this page."
        )
    scenes = [(one.name, replace(cases[one.key].scene, notes=tuple(_notes(one)))) for one in shown]
    _add_viewer(page, bundle, scenes)
    page.heading("Pictures").figures(
        [Figure(cases[one.key].picture, f"Answer for scan {one.name}", f"`{one.name}`") for one in shown], columns=1
    )


def _add_viewer(page: Page, bundle: Bundle, scenes: Sequence[tuple[str, Scene]]) -> None:
    """The slice viewer, and how it is used."""
    are_boxes = isinstance(bundle.head, BoxesHead)
    classes = shown_classes(bundle) if are_boxes or isinstance(bundle.head, MasksHead) else {}
    over = (" `b` goes to the next box," if are_boxes else " `o` shows the image alone,") if classes else ""
    page.viewer(scenes, classes, shows="model" if classes else "nothing", colours=class_colours(bundle, classes))
    around = "are shown around what was found, and " if classes else ""
    thinned = " Of large ones not every voxel is here." if any(max(scene.strides) > 1 for _, scene in scenes) else ""
    planes = "Click into a plane to move the others. With a plane in focus the wheel and the arrow keys go through it. "
    if all(scene.is_picture for _, scene in scenes):
        around = planes = ""
    page.paragraph(
        f"Images {around}are not for measuring.{thinned} {planes}Keys:{over} `n` and `p` go to the next and the "
        "previous scan."
    )


def _notes(result: ScanResult) -> list[str]:
    """Lines about a scan below its planes."""
    notes = [f"{name}: {result.volume_text(name)}" for name, ml in result.volumes_ml.items() if ml > 0]
    notes += [f"{name}: {_probability(result, name)}" for name in result.findings]
    notes += [f"{box['class']} {box['score']:.3f}{_diameter(box)}" for box in result.boxes if box["is_yes"]]
    if weaker := sum(not box["is_yes"] for box in result.boxes):
        notes.append(f"not drawn, below their operating point: {weaker}")
    notes += [f"{code}: {CODES[code].meaning}" for code in result.warnings if code in CODES]
    return notes or ["nothing found"]


def _diameter(box: Mapping[str, float]) -> str:
    return f", {box['diameter_mm']:.1f} mm" if "diameter_mm" in box else ""


def _add_codes(page: Page, title: str, codes: Sequence[str]) -> None:
    """What codes mean, and how often they came."""
    known = {code: number for code, number in Counter(codes).most_common() if code in CODES}
    if known:
        page.heading(title).table(
            ("code", "times", "meaning"), [(code, number, CODES[code].meaning) for code, number in known.items()]
        )
