"""The three pretexts of SwinUNETR: tell the turn of a damaged crop, restore it, and find its other copy."""

from medssl_cli.methods.swin_pretext.method import Method
from medssl_cli.methods.swin_pretext.options import Options

__all__ = ["Method", "Options"]
