"""VoCo: `options.py` its settings, `overlap.py` and `terms.py` its mathematics, `projector.py`, `labels.py` what labels
add, `method.py` the method, with the papers and where it departs from them.
"""

from medssl_cli.methods.voco.method import Method, trivial_losses
from medssl_cli.methods.voco.options import PUBLISHED, Corrections, OmniOptions, Options

__all__ = ["PUBLISHED", "Corrections", "Method", "OmniOptions", "Options", "trivial_losses"]
