"""DICOM series: headers, grouping, the geometry gate, pixels, and a writer of CT series.

The order of use: `read_headers` per file (`refused_file` where it refuses), `incomplete_series` and `group_headers`
over all of them, `read_series` per accepted part.
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
from medssl_cli.formats.dicom.incomplete import Incomplete, RefusedFile, incomplete_series, refused_file
from medssl_cli.formats.dicom.pixels import needs_decoder, read_series
from medssl_cli.formats.dicom.series import Refusal, SeriesPart, group_headers
from medssl_cli.formats.dicom.write import write_ct_series

__all__ = [
    "Header",
    "Incomplete",
    "Refusal",
    "RefusedFile",
    "SeriesPart",
    "content_digest",
    "dataset_bytes",
    "group_headers",
    "incomplete_series",
    "is_dicom",
    "mcd_mm",
    "needs_decoder",
    "read_headers",
    "read_series",
    "refused_file",
    "sop_class_of",
    "write_ct_series",
]
