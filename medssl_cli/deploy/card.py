"""The card of a model: what it is for, what it learnt from, how good it is and where it ends, for people.

Everything comes from the sealed bundle, so that card and file say the same. Nothing in it is about a single patient.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from medssl_cli.base.errors import UsageError
from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.run_scores import RunFigure
from medssl_cli.deploy.training_images import Extent, TrainingImages
from medssl_cli.heads import BoxesHead, FindingsHead, MasksHead
from medssl_cli.preprocessing import IntensityRule
from medssl_cli.report.page import Page

FEW_PATIENTS: Final = 100
NOT_KNOWN: Final = "not stated: the model was exported by an earlier medssl, or is no model of a task"
_NOT_NOTED: Final = "not noted: a file of an earlier medssl; export its run again, and it may start faster, too"
_MARKUP: Final = re.compile(r"([\\`*\[\]<>|~])")
Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class CardSection:
    """One part of a card.

    Args:
        title: Heading.
        facts: Names with their values.
        columns: Headings of a table.
        rows: Its rows.
        notes: Sentences.
    """

    title: str
    facts: Rows = field(default_factory=list)
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    notes: Sequence[str] = ()


def card_sections(bundle: Bundle) -> list[CardSection]:
    """The parts of a model's card, in their order."""
    return [
        CardSection("Use", _use(bundle)),
        CardSection("Answers", _answers(bundle)),
        CardSection("Training images", _training(bundle)),
        _scores(bundle),
        CardSection("Export", _export(bundle)),
        CardSection("Limits", notes=_limits(bundle)),
    ]


def card_markdown(bundle: Bundle) -> str:
    """The card as Markdown."""
    lines = [f"# {_plain(bundle.task)}", ""]
    for section in card_sections(bundle):
        lines += [f"## {section.title}", ""]
        lines += [f"- **{_plain(name)}**: {_plain(value)}" for name, value in section.facts]
        if section.rows:
            lines.append(f"| {' | '.join(section.columns)} |")
            lines.append(f"|{' --- |' * len(section.columns)}")
            lines += [f"| {' | '.join(map(_plain, row))} |" for row in section.rows]
        lines += [f"- {_plain(note)}" for note in section.notes]
        lines.append("")
    return "\n".join(lines)


def card_html(bundle: Bundle) -> str:
    """The card as one page of HTML that loads nothing."""
    page = Page(f"Model card: {bundle.task}", bundle.intended_use)
    for section in card_sections(bundle):
        page.heading(section.title)
        if section.facts:
            page.key_values(dict(section.facts))
        if section.rows:
            page.table(section.columns, section.rows)
        for note in section.notes:
            page.paragraph(note.replace("`", "'"))
    return page.render()


def card_in(bundle: Bundle, suffix: str) -> str:
    """The card in the form that the end of a file's name stands for.

    Raises:
        UsageError: `E_USAGE`, it stands for none.
    """
    forms = {".md": card_markdown, ".html": card_html}
    if suffix.lower() not in forms:
        raise UsageError(
            "E_USAGE", f"a card is no {suffix or 'file without an ending'}", hint="--card FILE.md or .html"
        )
    return forms[suffix.lower()](bundle)


def _use(bundle: Bundle) -> Rows:
    return [
        ("Intended use", bundle.intended_use),
        ("Licence of the weights", bundle.licence),
        ("Images", f"{'pictures' if bundle.takes_flat else 'volumes'} of modality {bundle.modality or 'any'}"),
        ("Channels", ", ".join(bundle.preprocessing.channel_names) or "one"),
    ]


def _answers(bundle: Bundle) -> Rows:
    head, seen = bundle.head, bundle.preprocessing
    rows = [("Kind", head.kind), ("Names", ", ".join(head.words))]
    if isinstance(head, MasksHead):
        rows.append(("Classes may overlap", "yes" if head.are_regions else "no"))
        axes = ", ".join("xyz"[axis] for axis in head.mirror_axes)
        rows.append(("Averaged over flips along", axes or "none"))
        largest = () if head.largest is None else head.largest.classes
        whole = "all classes together, " if head.largest is not None and head.largest.foreground else ""
        rows.append(("Only the largest part is kept of", f"{whole}{', '.join(largest)}".strip(", ") or "nothing"))
    if isinstance(head, FindingsHead | BoxesHead):
        points = [f"{name} at {point.threshold:.3f} ({point.rule})" for name, point in head.operating_points.items()]
        rows.append(("Counts as a yes", ", ".join(points)))
    geometry = seen.spacing_mm or seen.fit or seen.stretch
    unit = "mm" if seen.spacing_mm else "voxels"
    rows.append(("Brought to", f"{_by(geometry)} {unit}" if geometry else "nothing: images keep their own spacing"))
    rows.append(("Values", "; ".join(_rule(rule) for rule in seen.rules)))
    return rows


def _rule(rule: IntensityRule) -> str:
    if rule.window_hu is not None:
        return f"window {rule.window_hu[0]:g} to {rule.window_hu[1]:g}"
    if rule.percentiles is not None:
        return f"percentiles {rule.percentiles[0]:g} to {rule.percentiles[1]:g}"
    return "z-score"


def _training(bundle: Bundle) -> Rows:
    known = bundle.training
    if known is None:
        return [("Training images", NOT_KNOWN)]
    modalities = ", ".join(f"{count} {name}" for name, count in known.modalities.items())
    return [
        ("Learnt from", f"{known.num_images} images of {known.num_patients} patients"),
        ("Modality", modalities),
        ("Spacing, mm", _extent(known.spacing_mm)),
        ("Field of view, mm", _extent(known.field_of_view_mm)),
        ("Values", "; ".join(f"{span.low:.4g} to {span.high:.4g}" for span in known.values)),
        ("Unlike these", _surprise(known)),
        ("Digest of the list of items", bundle.manifest_sha256),
    ]


def _surprise(known: TrainingImages) -> str:
    summary = known.embeddings
    if summary is None:
        return "no distance is measured: there were too few images, or the network has no encoder"
    return (
        f"a scan farther than {summary.limit:.3g}, within which {100 * summary.limit_share:g} % of "
        f"{summary.num_left_out} images lie that were left out of the sum"
    )


def _extent(extent: Extent | None) -> str:
    return "not stated by the images" if extent is None else f"{_by(extent.low)} to {_by(extent.high)}"


def _by(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _scores(bundle: Bundle) -> CardSection:
    scores = bundle.scores
    if scores is None:
        return CardSection("Scores", notes=["Not evaluated before the export: medssl evaluate, then export again."])
    who = f"{scores.num_images} images of {scores.num_patients} patients, split {scores.split}"
    rows = [(one.name, one.metric, f"{one.mean:.4g}", _interval(one)) for one in scores.figures]
    return CardSection("Scores", [("Scored on", who)], ("class", "figure", "mean", "interval"), rows)


def _interval(figure: RunFigure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{figure.low:.4g} to {figure.high:.4g} ({100 * figure.confidence:g} %)"


def _export(bundle: Bundle) -> Rows:
    return [
        ("Parity", bundle.proof),
        ("medssl", bundle.medssl_version),
        (
            "Memory of an answer",
            _NOT_NOTED if bundle.memory_bytes is None else f"{bundle.memory_bytes / 2**20:.0f} MiB",
        ),
        ("Digest of the recipe", bundle.recipe_sha256),
        ("Digest of the weights", bundle.weights_sha256),
    ]


def _limits(bundle: Bundle) -> list[str]:
    """What is known to be weak about a model, from what it says of itself."""
    known, scores = bundle.training, bundle.scores
    said = ["Not a medical device. Look at every answer before it is used."]
    if known is not None and known.num_patients < FEW_PATIENTS:
        said.append(f"It has learnt from {known.num_patients} patients only.")
    if known is not None and len(known.modalities) == 1:
        said.append(f"It has seen nothing but {next(iter(known.modalities))}.")
    if scores is None:
        said.append("How good it is was not measured before its export.")
    elif scores.num_patients < FEW_PATIENTS:
        said.append(
            f"Its scores are of {scores.num_patients} patients only, of the same source as the training images."
        )
    if known is None or known.embeddings is None:
        said.append("It cannot tell when a scan is unlike its training images.")
    if bundle.parity is not None:
        said.append(f"The export was compared with the trained network on {bundle.parity.num_cases} images.")
    return said


def _plain(text: str) -> str:
    """Text that others chose, without control characters and without meaning in Markdown."""
    readable = "".join(letter if letter.isprintable() else " " for letter in text)
    return _MARKUP.sub(r"\\\1", readable)
