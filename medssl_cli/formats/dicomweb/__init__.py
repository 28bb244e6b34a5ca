"""A PACS as a source: the client side of DICOMweb (PS3.18), reading only."""

from medssl_cli.formats.dicomweb.address import Address, Credentials, is_pacs_url
from medssl_cli.formats.dicomweb.http import Patience
from medssl_cli.formats.dicomweb.pacs import Pacs, PacsLimits
from medssl_cli.formats.dicomweb.query import PacsQuery, SeriesRef

__all__ = ["Address", "Credentials", "Pacs", "PacsLimits", "PacsQuery", "Patience", "SeriesRef", "is_pacs_url"]
