"""medssl: hospital images to a deployed model on one road."""

__version__ = "0.1.0"
