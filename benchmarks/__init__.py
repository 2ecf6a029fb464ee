"""Measurements and the making of the bundled backbone: run by hand, `python -m benchmarks.<name> --help`."""
