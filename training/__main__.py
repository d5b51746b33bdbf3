"""``python -m segship.training`` is ``seg-train``, for launchers that take a module."""

from segship.training.cli import main

main()
