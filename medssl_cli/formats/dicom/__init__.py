"""DICOM series: headers, grouping, the geometry gate, pixels, and a writer of CT series.

The order of use: `read_header` per file, `group_headers` over all of them, `read_series` per accepted part.
"""

from medssl_cli.formats.dicom.gate import mcd_mm
from medssl_cli.formats.dicom.headers import Header, is_dicom, read_header
from medssl_cli.formats.dicom.pixels import needs_decoder, read_series
from medssl_cli.formats.dicom.series import Refusal, SeriesPart, group_headers
from medssl_cli.formats.dicom.write import write_ct_series

__all__ = [
    "Header",
    "Refusal",
    "SeriesPart",
    "group_headers",
    "is_dicom",
    "mcd_mm",
    "needs_decoder",
    "read_header",
    "read_series",
    "write_ct_series",
]
