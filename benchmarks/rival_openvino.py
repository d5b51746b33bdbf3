"""OpenVINO's own ``benchmark_app``, run as a program: the bare network, as fast as the engine's makers have it."""

import json
import tempfile
from pathlib import Path
from typing import Final

from segship.benchmarks.rival_process import RivalError, Turn, run_program
from segship.benchmarks.rival_worker import peak_bytes

_HINTS: Final = {"network": "latency", "at_once": "throughput"}
_PRECISION: Final = ("-infer_precision", "f32", "-ip", "f32")
"""Inside, and of its input, which would else be pixels of 8 bits that the graph converts."""


class BenchmarkApp:
    """``benchmark_app`` in float32, with its hint ``latency`` for ``network`` and ``throughput`` for ``at_once``.

    It starts anew for each turn, and leaves loading and a first run, its own warm-up, out of what it measures.

    Args:
        program: its path.
        model: the ONNX file.
        seconds: that each turn measures for.
    """

    def __init__(self, program: Path, model: Path, seconds: int) -> None:
        self._program, self._model, self._seconds = program, model, seconds

    def run(self, task: str, count: int) -> Turn:
        """Return what ``count`` runs take by the clock, of as many as it did.

        Raises:
            RivalError: if it fails, or writes no report.
        """
        peak = 0

        def watch(pid: int) -> None:
            nonlocal peak
            peak = max(peak, peak_bytes(pid) or 0)

        with tempfile.TemporaryDirectory() as folder:
            asked = ["-d", "CPU", "-hint", _HINTS[task], *_PRECISION, "-t", str(self._seconds)]
            report = ["-report_type", "no_counters", "-json_stats", "-report_folder", folder]
            run_program([self._program, "-m", self._model, *asked, *report], watch=watch)
            try:
                text = (Path(folder) / "benchmark_report.json").read_text(encoding="utf-8")
                told = json.loads(text)["execution_results"]
                # The mean, as of whatever runs in a worker: by default it tells a median of latencies.
                each = float(told["total execution time (ms)"]) / 1000 / int(told["total number of iterations"])
            except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
                raise RivalError(f"benchmark_app told no figures ({type(error).__name__}: {error})") from error
        return Turn(each * count, peak or None)

    def close(self) -> None:
        """Nothing is left running."""
