"""Joint image-volume learning: `options.py` its settings, `masked_slices.py` hidden slices, `chunks.py` and `idle.py`
memory and gradients of volumes, `method.py` the method, with the paper and where it departs from it.
"""

from medssl_cli.methods.joint.method import Method
from medssl_cli.methods.joint.options import Options

__all__ = ["Method", "Options"]
