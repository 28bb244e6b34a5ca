"""MAE: guess what blocks of an image show from the rest of it, with tokens or with convolutions."""

from medssl_cli.methods.mae.method import Method
from medssl_cli.methods.mae.options import Options

__all__ = ["Method", "Options"]
