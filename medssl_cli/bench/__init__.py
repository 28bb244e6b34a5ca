"""Benchmarks that a site can repeat on its own machine, beside the tools it knows."""
