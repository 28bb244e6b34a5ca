"""Which of the scans that were found are asked about: by name, by rules about their series, by a part of the work.

modality=CT,slices>=40,thickness<=2.5,contrast=no,newest      one rule: all conditions hold
description=*thorax*|*chest*,description!=*scout*             shell patterns, in small letters or capitals
"""

import fnmatch
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from medssl_cli.base.errors import UsageError
from medssl_cli.deploy.scans import Findings, Reject, Scan

if TYPE_CHECKING:
    from medssl_cli.formats.series_facts import SeriesFacts

NEWEST: Final = "newest"
LEFT_OUT: Final = "S_NOT_CHOSEN"
_CONDITION: Final = re.compile(r"(modality|description|slices|thickness|contrast)(!=|>=|<=|=)(.+)")
_RELATIONS: Final = {
    "modality": ("=", "!="), "description": ("=", "!="), "contrast": ("=",), "slices": ("=", ">=", "<="),
    "thickness": ("=", ">=", "<="),
}  # fmt: skip
_EXAMPLE: Final = "for example modality=CT,slices>=40,thickness<=2.5,contrast=no,description=*chest*,newest"


@dataclass(frozen=True)
class Part:
    """One of several equal parts of the work, the same whoever asks: a scan belongs to it by what it is.

    Args:
        number: Number from 1 on.
        of: How many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "3/8".

        Raises:
            UsageError: `E_USAGE`.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError("E_USAGE", "--part is no part of the work", hint="the third of eight parts is 3/8")
        return cls(int(found[1]), int(found[2]))

    @property
    def word(self) -> str:
        """What names of files call it."""
        return f"{self.number}-of-{self.of}"

    def holds(self, key: str) -> bool:
        """Whether a scan with this key belongs to it."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8]) % self.of == self.number - 1


@dataclass(frozen=True)
class Condition:
    """What a rule asks of a series: a property, a relation, a value."""

    name: str
    relation: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `slices>=40`.

        Raises:
            UsageError: `E_USAGE`.
        """
        found = _CONDITION.fullmatch(text)
        if found is None or found[2] not in _RELATIONS[found[1]]:
            raise UsageError("E_USAGE", f"{text!r} is no condition about series", hint=_EXAMPLE)
        name, relation, value = found.groups()
        is_number = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) is not None
        if (name in ("slices", "thickness") and not is_number) or (name == "contrast" and value not in ("yes", "no")):
            raise UsageError("E_USAGE", f"{text!r} is no condition about series", hint=_EXAMPLE)
        return cls(name, relation, value)

    def __str__(self) -> str:
        return f"{self.name}{self.relation}{self.value}"

    def holds(self, facts: "SeriesFacts") -> bool:
        """Whether a series is so; what it does not say of itself is no number, and no contrast agent."""
        if self.name in ("modality", "description"):
            text = getattr(facts, self.name).casefold()
            patterns = self.value.casefold().split("|")
            return any(fnmatch.fnmatchcase(text, one) for one in patterns) == (self.relation == "=")
        if self.name == "contrast":
            return facts.has_contrast == (self.value == "yes")
        found, wanted = facts.num_slices if self.name == "slices" else facts.thickness_mm, float(self.value)
        if found is None:
            return False
        return {"=": found == wanted, ">=": found >= wanted, "<=": found <= wanted}[self.relation]


@dataclass(frozen=True)
class SeriesRule:
    """Which DICOM series are asked about.

    Args:
        conditions: All of them hold.
        is_newest: Whether only the series of a study that was made last is asked about.
    """

    conditions: tuple[Condition, ...]
    is_newest: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read conditions with commas between them.

        Raises:
            UsageError: `E_USAGE`.
        """
        words = [word.strip() for word in text.split(",")]
        return cls(tuple(Condition.parse(word) for word in words if word != NEWEST), NEWEST in words)

    def of_modality(self, modality: str | None) -> "SeriesRule":
        """The rule for a model of a modality: of the series that it takes the newest one is meant."""
        is_said = any(one.name == "modality" for one in self.conditions)
        if modality is None or is_said or not self.is_newest:
            return self
        return replace(self, conditions=(Condition("modality", "=", modality), *self.conditions))

    def broken_by(self, facts: "Sequence[SeriesFacts]") -> str:
        """The first condition that some of several series do not keep; "" if there is none."""
        return next((str(one) for one in self.conditions if not all(map(one.holds, facts))), "")


def is_rule(text: str) -> bool:
    """Whether a word of `--series` is a rule, and neither a name nor a UID."""
    return text.strip() == NEWEST or any(sign in text for sign in "=<>")


def chosen(
    found: Findings, series: Sequence[str], part: Part | None = None, *, modality: str | None = None
) -> Findings:
    """The scans that are asked about, and what else there is to tell.

    Args:
        found: What the inputs hold.
        series: Names and UIDs of scans, and rules; a scan that any of them chooses is taken. All by default.
        part: Part of the work.
        modality: Modality of the model; None takes any.

    Raises:
        UsageError: `E_USAGE`, a rule is none; `E_NOT_FOUND`, a name or UID is not in the input.
    """
    rules = [SeriesRule.parse(text).of_modality(modality) for text in series if is_rule(text)]
    names = {text for text in series if not is_rule(text)}
    if names:
        found = _by_name(found, names, keeps_others=bool(rules))
    if rules:
        found = _by_rules(found, rules, lambda scan: not names.isdisjoint(names_of(scan)))
    if part is not None:
        scans = [one for one in found.scans if part.holds(one.key)]
        found = replace(found, scans=scans, rejects=[one for one in found.rejects if part.holds(one.key)])
    return found


def names_of(scan: Scan) -> list[str]:
    """What a scan can be chosen by; a case also by each of its images."""
    return [name for one in (scan, *scan.images) for name in (one.name, one.place.series)]


def _by_name(found: Findings, names: set[str], *, keeps_others: bool) -> Findings:
    kept = [scan for scan in found.scans if not names.isdisjoint(names_of(scan))]
    rejects = [one for one in found.rejects if one.place.series in names]
    missing = names - {name for scan in kept for name in names_of(scan)}
    missing -= {one.place.series for one in rejects}
    if missing:
        raise UsageError(
            "E_NOT_FOUND", f"{len(missing)} of {len(names)} series are not in the input", hint="--dry-run lists all"
        )
    return found if keeps_others else replace(found, scans=kept, rejects=rejects)


def _by_rules(found: Findings, rules: Sequence[SeriesRule], is_named: Callable[[Scan], bool]) -> Findings:
    from medssl_cli.formats.series_facts import series_facts

    facts = {
        scan.key: [series_facts(series) for one in scan.parts if (series := one.series) is not None]
        for scan in found.scans
    }
    reasons = {scan.key: "" if is_named(scan) else "not a DICOM series, of which rules speak" for scan in found.scans}
    candidates = [scan for scan in found.scans if reasons[scan.key] and len(facts[scan.key]) == len(scan.parts)]
    taken: set[str] = set()
    for rule in rules:
        kept = []
        for scan in candidates:
            broken = rule.broken_by(facts[scan.key])
            reasons[scan.key] = f"{broken} does not hold" if broken else reasons[scan.key]
            kept += [] if broken else [scan]
        newest = _newest_of_studies(kept, facts) if rule.is_newest else {scan.key for scan in kept}
        for scan in kept:
            if scan.key not in newest:
                reasons[scan.key] = "a later series of its study is taken"
        taken |= newest
    scans = [scan for scan in found.scans if scan.key in taken or not reasons[scan.key]]
    left = [scan for scan in found.scans if scan.key not in taken and reasons[scan.key]]
    return replace(found, scans=scans, rejects=[*found.rejects, *(_left_out(one, reasons[one.key]) for one in left)])


def _newest_of_studies(scans: Sequence[Scan], facts: "dict[str, list[SeriesFacts]]") -> set[str]:
    """Keys of the latest scan of each study; of two at the same time, of the one with the higher number."""
    latest: dict[str, Scan] = {}
    for scan in scans:
        other = latest.get(scan.place.study)
        if other is None or facts[scan.key][0].moment > facts[other.key][0].moment:
            latest[scan.place.study] = scan
    return {scan.key for scan in latest.values()}


def _left_out(scan: Scan, why: str) -> Reject:
    return Reject(scan.key, scan.name, scan.place, LEFT_OUT, why, "", len(scan.files), scan.kind)
