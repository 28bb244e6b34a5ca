"""Standardised uptake values by body weight: one factor for a PET series, computed before dates are dropped.

The rules are those of QIBA's vendor-neutral pseudo-code for SUVbw: Units BQML, attenuation and decay corrected,
decay to the start of the series or to the administration. Nothing is ever replaced by a default.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from medssl_cli.formats.dicom.headers import Header

DAY_S: Final = 86_400.0
MAX_DELAY_S: Final = 12 * 3600.0
MAX_HALF_LIVES: Final = 12.0  # 0.02 % of the dose is left: nobody images that, but minutes written for seconds look so

# Wide enough for a preterm infant, a small animal's tracer dose and Rb-82; a unit too large or small is far outside.
POSSIBLE: Final = {
    "PatientWeight": (0.2, 700.0),  # kg
    "RadionuclideTotalDose": (1e5, 1e11),  # Bq
    "RadionuclideHalfLife": (60.0, 1e6),  # s
}

_MINUTE_S: Final = 60.0
_TIME: Final = re.compile(r"(\d\d)(?::?(\d\d)(?::?(\d\d)(\.\d{1,6})?)?)?")
_DATE: Final = re.compile(r"\d{8}")
_BY_BODY_WEIGHT: Final = ("", "BW")
_SINGLE: Final = ("Units", "SUVType", "DecayCorrection", "CorrectedImage", "SeriesDate", "SeriesTime", "PatientWeight")
_DOSE: Final = ("RadionuclideTotalDose", "RadionuclideHalfLife")
_INJECTION: Final = ("RadiopharmaceuticalStartTime", "RadiopharmaceuticalStartDateTime")


@dataclass(frozen=True)
class SuvFactor:
    """What to multiply a voxel by.

    Args:
        factor: SUVbw in g/ml per stored unit (Bq/ml, g/ml or, for Philips, counts); None where it cannot be known.
        missing: Keywords of the elements that are missing, unusable or contradictory.
        uses_acquisition_time: Decay was counted from the earliest acquisition among these slices, because the series
            claims to have begun later.
    """

    factor: float | None
    missing: tuple[str, ...] = ()
    uses_acquisition_time: bool = False


@dataclass(frozen=True)
class _Moment:
    """Seconds since midnight, and the day's number where the date is known."""

    seconds: float
    day: int | None


def suv_factor(headers: Sequence[Header]) -> SuvFactor:
    """The factor that turns a PET series into SUVbw.

    Args:
        headers: All slices of one image.

    Returns:
        1 for Units GML; Philips' own factor for CNTS; for BQML weight / dose with the dose decayed to the start of
        the scan (START) or as given (ADMIN); else None and the reason. Values that are uptake already count only if
        they are by body weight, which SUV Type says or is silent about (PS3.3 C.8.9.1).
    """
    first = headers[0]
    shared = (*_SINGLE, *_DOSE, *_INJECTION, "philips_suv_factor")
    varying = tuple(name for name in shared if len({getattr(header, name) for header in headers}) > 1)
    if varying:
        return SuvFactor(None, varying)
    if first.Units in ("GML", "CNTS") and first.SUVType.upper() not in _BY_BODY_WEIGHT:
        return SuvFactor(None, ("SUVType",))
    if first.Units == "GML":
        return SuvFactor(1.0)
    if first.Units == "CNTS":
        factor = first.philips_suv_factor
        return SuvFactor(factor) if factor and factor > 0 else SuvFactor(None, ("(7053,1000)",))
    if first.Units != "BQML":
        return SuvFactor(None, ("Units",))
    missing = _missing(first)
    start, begin, uses_acquisition = _injection(first), *_scan_start(headers)
    missing += [name for name, moment in zip((_INJECTION[0], "SeriesTime"), (start, begin), strict=True) if not moment]
    if missing or start is None or begin is None:
        return SuvFactor(None, tuple(missing))
    delay = _delay_s(start, begin)
    if not 0 < delay < MAX_DELAY_S:
        return SuvFactor(None, (_INJECTION[0], "SeriesTime"))
    weight, dose, half_life = first.PatientWeight or 0.0, first.RadionuclideTotalDose or 0.0, first.RadionuclideHalfLife
    if not half_life or delay > MAX_HALF_LIVES * half_life:
        return SuvFactor(None, ("RadionuclideHalfLife",))
    decayed = dose * 2 ** (-delay / half_life) if first.DecayCorrection == "START" else dose
    return SuvFactor(weight * 1000 / decayed, (), uses_acquisition)


def _missing(header: Header) -> list[str]:
    found = [name for name, (low, high) in POSSIBLE.items() if not low <= (getattr(header, name) or 0) <= high]
    if not {"ATTN", "DECY"} <= {value.upper() for value in header.CorrectedImage}:
        found.append("CorrectedImage")
    if header.DecayCorrection not in ("START", "ADMIN"):
        found.append("DecayCorrection")
    return found


def _injection(header: Header) -> _Moment | None:
    """When the radiopharmaceutical was given, unless its two elements name two times of the day.

    A date and time with an offset from UTC is no local time.
    """
    text = header.RadiopharmaceuticalStartDateTime
    alone = _moment("", header.RadiopharmaceuticalStartTime)
    if len(text) < 10 or "+" in text or "-" in text:
        return alone
    dated = _moment(text[:8], text[8:])
    if alone and dated and abs(_difference_s(alone, dated)) >= _MINUTE_S:
        return None
    return dated


def _scan_start(headers: Sequence[Header]) -> tuple[_Moment | None, bool]:
    """Start of the series, unless it claims to have begun after its first acquisition; and whether it does."""
    series = _moment(headers[0].SeriesDate, headers[0].SeriesTime)
    moments = [_moment(header.AcquisitionDate, header.AcquisitionTime) for header in headers]
    known = [moment for moment in moments if moment is not None]
    if series is None or len(known) < len(moments):
        return None, False
    # Without dates a scan over midnight has no earliest time by the clock; take the one that is earliest around it.
    acquired = min(known, key=lambda moment: _difference_s(known[0], moment))
    if _difference_s(acquired, series) > 0:
        return acquired, True
    return series, False


def _difference_s(first: _Moment, second: _Moment) -> float:
    """Seconds from one moment to another; within half a day of each other where a date is unknown."""
    seconds = second.seconds - first.seconds
    if first.day is not None and second.day is not None:
        return seconds + (second.day - first.day) * DAY_S
    return (seconds + DAY_S / 2) % DAY_S - DAY_S / 2


def _delay_s(injection: _Moment, scan: _Moment) -> float:
    """Seconds from injection to scan; over midnight where the injection has a time but no date."""
    if injection.day is not None and scan.day is not None:
        return _difference_s(injection, scan)
    return (scan.seconds - injection.seconds) % DAY_S


def _moment(date: str, time: str) -> _Moment | None:
    """A DICOM date and time (PS3.5 6.2), or None if the time is not valid."""
    match = _TIME.fullmatch(time.strip())
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.group(1, 2, 3))
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    return _Moment(hours * 3600 + minutes * 60 + seconds + float(match[4] or 0), _day(date))


def _day(date: str) -> int | None:
    if not _DATE.fullmatch(date):
        return None
    try:
        return datetime.strptime(date, "%Y%m%d").toordinal()
    except ValueError:
        return None
