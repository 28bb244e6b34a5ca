"""Where a PACS is and who asks."""

from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

from medssl_cli.base.errors import UsageError

_SCHEMES: Final = {"dicomweb": "https", "dicomweb+http": "http"}
_EXAMPLE: Final = "dicomweb://HOST[:PORT]/PATH; dicomweb+http:// is not encrypted"


def is_pacs_url(text: str) -> bool:
    """Whether an input names a PACS and not a file."""
    return text.partition("://")[0].lower() in _SCHEMES and "://" in text


@dataclass(frozen=True)
class Address:
    """Base address of a DICOMweb service.

    Args:
        url: Beginning with https:// or http://, without a slash at the end.
    """

    url: str

    @property
    def is_encrypted(self) -> bool:
        """Whether images and credentials travel over TLS."""
        return self.url.startswith("https://")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `dicomweb://HOST[:PORT]/PATH` (https) or `dicomweb+http://...`.

        Raises:
            UsageError: `E_USAGE`; the message never repeats the address, which may hold a password.
        """
        try:
            parts = urlsplit(text)
            port, has_user = parts.port, "@" in parts.netloc
        except ValueError as error:
            raise UsageError("E_USAGE", "the address of the PACS is not valid", hint=_EXAMPLE) from error
        if has_user:
            raise UsageError(
                "E_USAGE",
                "credentials in an address are visible to everyone on the machine",
                hint="set MEDSSL_PACS_TOKEN, or MEDSSL_PACS_USER and MEDSSL_PACS_PASSWORD_FILE",
            )
        if parts.scheme.lower() not in _SCHEMES or not parts.hostname or not text.isprintable() or " " in text:
            raise UsageError("E_USAGE", "the address of the PACS is not valid", hint=_EXAMPLE)
        if parts.query or parts.fragment:
            raise UsageError("E_USAGE", "the address of a PACS has no ? and no #", hint=_EXAMPLE)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        place = host if port is None else f"{host}:{port}"
        return cls(f"{_SCHEMES[parts.scheme.lower()]}://{place}{parts.path.rstrip('/')}")


@dataclass(frozen=True)
class Credentials:
    """A bearer token, or a user and a password, or neither. Never printed, not even by accident.

    Args:
        token: Sent as `Authorization: Bearer`.
        user: User for basic authentication.
        password: Password for basic authentication.

    Raises:
        UsageError: `E_USAGE`, they cannot be sent as they are.
    """

    token: str = field(default="", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.token and (self.user or self.password):
            raise UsageError("E_USAGE", "the PACS gets a token or a user and password, not both")
        if not all(text.isprintable() for text in (self.token, self.user, self.password)) or not self.token.isascii():
            raise UsageError(
                "E_USAGE", "the credentials hold characters that cannot be sent", hint="is there a line break?"
            )
        if ":" in self.user or bool(self.user) != bool(self.password):
            raise UsageError("E_USAGE", "basic authentication needs a user without ':' and a password")
