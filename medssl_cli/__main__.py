"""`python -m medssl_cli` is `medssl`."""

from medssl_cli.cli.start import main

main()
