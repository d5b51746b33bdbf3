"""What the engines share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
from pathlib import Path
import numpy as np
from segship.runtime.backends import load_backend
from segship.runtime.model_file import read_card
model = Path(sys.argv[2])
backend = load_backend(sys.argv[1], model, read_card(model), "cpu")
backend.run(np.zeros((1, 3, 48, 64), np.float32))
backend.close()
print(*(name for name in sys.modules if "telemetry" in name and "stub" not in name and "ovc" not in name))
"""


@pytest.mark.parametrize("engine", ["ort", "opencv", "openvino"])
def test_no_engine_reports_to_its_makers_or_says_anything(engine: str, tiny_model: Path, tmp_path: Path) -> None:
    """Those that do leave an identity of the machine in the user's folder first."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, engine, str(tiny_model)],
        env=kept | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
    assert list(home.rglob("*")) == []
