"""Measurements of what medssl claims about itself, which anyone can repeat: `python -m tests.bench --help`."""
