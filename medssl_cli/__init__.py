"""medssl: hospital images to a deployed model on one road."""

from medssl_cli.offline import stay_offline

__version__ = "0.1.0"

stay_offline()
