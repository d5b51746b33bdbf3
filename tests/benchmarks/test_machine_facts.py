import shutil
import sys
from pathlib import Path

import pytest

from segship.benchmarks.machine_facts import gpu_states, gpu_states_under
from segship.runtime.errors import BackendError


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for nvidia-smi")
def test_gpus_are_asked_while_a_load_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, seen = tmp_path / "nvidia-smi", tmp_path / "seen"
    script.write_text(
        f"#!{shutil.which('sh')}\nuntil [ -e {seen} ]; do {shutil.which('sleep')} 0.01; done\n"
        "echo '1980, 2619, 1980, 512.5, 700.0, 55'\necho '210, 2619, 1980, 70.1, 700.0, 31'\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    loads = 0

    def load() -> None:
        nonlocal loads
        loads += 1
        if loads == 3:
            seen.touch()

    busy, idle = gpu_states_under(load)
    assert loads >= 3
    assert "1980 MHz of its processors, " in busy
    assert "512.5 W drawn" in busy
    assert "70.1 W drawn" in idle
    assert gpu_states() == (busy, idle)
    script.unlink()
    assert gpu_states_under(load) == ()


def test_a_load_that_fails_says_why() -> None:
    def load() -> None:
        raise BackendError("on purpose")

    with pytest.raises(BackendError, match="on purpose"):
        gpu_states_under(load)
