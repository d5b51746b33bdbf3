"""Measures what ships, by scripts: ``python -m segship.benchmarks.NAME --help``."""
