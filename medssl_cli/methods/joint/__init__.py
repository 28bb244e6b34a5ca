"""Joint image-volume learning: `method.py` the method, with the paper and where it departs from it.

`options.py` holds its settings, `masked_slices.py` hidden slices, `chunks.py` and `unused_parameters.py` memory and
gradients of volumes.
"""

from medssl_cli.methods.joint.method import Method
from medssl_cli.methods.joint.options import Options

__all__ = ["Method", "Options"]
