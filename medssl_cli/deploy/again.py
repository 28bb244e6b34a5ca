"""What a service does not take for an answer, so that it asks again later: nothing must be lost by a bad hour."""

from collections.abc import Sequence
from typing import Final

from medssl_cli.deploy.results import NOT_SENT, ScanResult

FIRST_RETRY_S: Final = 10.0
LONGEST_RETRY_S: Final = 600.0
MAX_ATTEMPTS: Final = 10
"""Attempts of one content: what fails again and again must not keep a service from all else."""
NO_DISK: Final = ("E_IO", "E_NO_SPACE")
MAY_PASS: Final = ("E_RUNTIME", "E_MODEL_LIMIT", "E_SCAN_FAILED")
"""Failures of the machine or of the model, and not of the scan: the same scan may be answered for later."""


def wait_s(times: int) -> float:
    """How long to wait after so many times before."""
    return min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(times, 10))


def without_disk(results: Sequence[ScanResult]) -> ScanResult | None:
    """The first scan whose files could not be read or written."""
    return next((one for one in results if one.code in NO_DISK), None)


def is_unsent(results: Sequence[ScanResult]) -> bool:
    """Whether a place has not taken everything that it may take."""
    return any(NOT_SENT in one.warnings for one in results)


def failed(results: Sequence[ScanResult]) -> list[ScanResult]:
    """Scans that may be answered for later."""
    return [one for one in results if one.code in MAY_PASS]
