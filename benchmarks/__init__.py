"""Measures what ships. Each module is a script: ``python -m segship.benchmarks.NAME --help``."""
