"""A PACS as a source, and as the place of results: the client side of DICOMweb (PS3.18)."""

from medssl_cli.formats.dicomweb.address import Address, Credentials, is_pacs_url
from medssl_cli.formats.dicomweb.http import Patience
from medssl_cli.formats.dicomweb.pacs import Pacs, PacsLimits
from medssl_cli.formats.dicomweb.query import PacsQuery, SeriesRef
from medssl_cli.formats.dicomweb.store import Store

__all__ = ["Address", "Credentials", "Pacs", "PacsLimits", "PacsQuery", "Patience", "SeriesRef", "Store", "is_pacs_url"]
