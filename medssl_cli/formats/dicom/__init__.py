"""DICOM series: headers, grouping, the geometry gate, pixels, and a writer of CT series.

The order of use: `read_headers` per file, `group_headers` over all of them, `read_series` per accepted part.
"""

from medssl_cli.formats.dicom.gate import mcd_mm
from medssl_cli.formats.dicom.headers import (
    Header,
    content_digest,
    dataset_bytes,
    is_dicom,
    read_headers,
    sop_class_of,
)
from medssl_cli.formats.dicom.pixels import needs_decoder, read_series
from medssl_cli.formats.dicom.series import Refusal, SeriesPart, group_headers
from medssl_cli.formats.dicom.write import write_ct_series

__all__ = [
    "Header",
    "Refusal",
    "SeriesPart",
    "content_digest",
    "dataset_bytes",
    "group_headers",
    "is_dicom",
    "mcd_mm",
    "needs_decoder",
    "read_headers",
    "read_series",
    "sop_class_of",
    "write_ct_series",
]
