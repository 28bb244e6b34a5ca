"""The registry of codes: what each means and what to do about it.

Codes are append-only and never change their meaning. `E_` refuses, `W_` accepts with a note, `S_` skips by rule.
"""

from typing import Final

from medssl_cli.base.codes.code import Code
from medssl_cli.base.codes.commands import COMMAND_CODES
from medssl_cli.base.codes.inputs import INPUT_CODES
from medssl_cli.base.codes.labels import LABEL_CODES

__all__ = ["CODES", "Code"]

CODES: Final[dict[str, Code]] = {**INPUT_CODES, **LABEL_CODES, **COMMAND_CODES}
