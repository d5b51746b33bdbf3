"""Does a contender's tasks in its own Python, warm, as often as :class:`segship.benchmarks.rival_process.Worker` says.

    python -P rival_worker.py CONTENDER.py SETTINGS

Imports nothing of segship, since other environments do not have it. CONTENDER.py is a file with a function
``open_contender(settings)`` that returns tasks by name, each of which takes how often it is to be done. SETTINGS is a
JSON object. Each line of standard input is a JSON list, ``[task, count]``, and is answered by one line of JSON.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any, TextIO


def serve(contender: str, settings: str) -> None:
    """Say that the contender is open, then answer each line with ``seconds`` and ``peak_bytes`` until there is none."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the contender prints is no answer
    tasks = runpy.run_path(contender)["open_contender"](json.loads(settings))
    _tell(answers, {"ready": True})
    for line in sys.stdin:
        task, count = json.loads(line)
        start = time.perf_counter()
        tasks[task](count)
        seconds = time.perf_counter() - start
        _tell(answers, {"seconds": seconds, "peak_bytes": peak_bytes("self")})


def peak_bytes(pid: int | str) -> int | None:
    """Return the most resident memory that a process has used (``VmHWM``); None where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def _tell(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
