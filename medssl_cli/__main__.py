"""`python -m medssl_cli` is `medssl`."""

from medssl_cli.cli.app import main

main()
