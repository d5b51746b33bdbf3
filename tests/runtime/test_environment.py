"""What seg-check env says of this machine."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import segship
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.check_cli import seg_check
from segship.runtime.environment import examine, read_cpu

Command = Callable[..., tuple[int, str, str]]
WITHOUT_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")

X86 = """processor	: 0
model name	: A Processor 9000
flags		: fpu sse avx2 avx512f avx512_vnni avx512_bf16

processor	: 1
model name	: Another
flags		: fpu
"""
ARM = "processor	: 0\nFeatures	: fp asimd bf16 i8mm\n"


@pytest.mark.extras
def test_all_engines_are_listed_and_those_that_work_say_what_ran() -> None:
    found = examine(["ort", "openvino"])
    states = {(state.backend, state.device): state for state in found.engines}
    assert list(states) == [("ort", "cpu"), ("ort", "cuda"), ("openvino", "cpu"), ("torch", "auto")]
    assert states["ort", "cpu"].works
    assert states["ort", "cpu"].detail.startswith("ONNX Runtime ")
    assert states["ort", "cpu"].install == ""
    assert any(package.startswith("onnxruntime") for package in states["ort", "cpu"].packages)
    assert states["torch", "auto"].works is None
    assert found.segship == segship.__version__
    assert found.cpu.usable == available_cpus()


@WITHOUT_GPU
def test_where_there_is_no_gpu_nothing_is_advised_for_it(command: Command) -> None:
    status, out, _ = command(seg_check, "env", "--json")
    engines = {(one["backend"], one["device"]): one for one in json.loads(out)["engines"]}
    assert status == 0
    for name in ("ort", "opencv", "tensorrt"):
        assert engines[name, "cuda"]["works"] is False
        assert (engines[name, "cuda"]["detail"], engines[name, "cuda"]["install"]) == (
            "no NVIDIA GPU and driver found",
            "",
        )


def test_an_engine_that_is_missing_is_no_error_and_its_install_line_is_whole(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is hidden from the child processes, as if its package were broken."""
    (tmp_path / "openvino.py").write_text("raise ImportError('no such library')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "40")
    status, out, err = command(seg_check, "env")
    assert status == 0
    assert 'openvino on cpu:  pip install "segship[openvino]"' in out.splitlines()
    assert "To install what is missing:" in out.splitlines()
    assert "trying the engines" in err


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (X86, "A Processor 9000", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")),
        (ARM, None, ("asimd", "bf16")),
        (None, None, ()),
    ],
)
def test_the_processor_is_described_as_far_as_it_is_known(
    text: str | None, name: str | None, features: tuple[str, ...], tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    cpu = read_cpu(tmp_path / "cpuinfo")
    assert cpu.features == features
    assert cpu.name == name if name else cpu.name
    assert cpu.cores >= 1
