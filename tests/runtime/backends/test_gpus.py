"""What NVIDIA's driver is asked: through a program of nvidia-smi's name that answers as it does."""

import os
import shutil
from pathlib import Path

import pytest

from segship.runtime.backends.gpus import Gpu, cuda_gpu, cuda_number, driver_version, has_nvidia_driver, nvidia_gpus
from segship.runtime.errors import DeviceError

POSIX = pytest.mark.skipif(os.name != "posix", reason="a script stands in for the program")
WITHOUT_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")


def answering(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@POSIX
def test_each_line_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = r"printf 'NVIDIA L4, 8.9, 23034, 580.95.05\nNVIDIA GB10, 12.1, [N/A], 580.95.05\n'"
    answering(tmp_path, lines, monkeypatch)
    assert nvidia_gpus() == (
        Gpu("NVIDIA L4", "8.9", 23034, "580.95.05"),
        Gpu("NVIDIA GB10", "12.1", 0, "580.95.05"),
    )
    assert driver_version() == "580.95.05"


@POSIX
@pytest.mark.parametrize(
    "script",
    ["echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9", "echo 'No devices were found'"],
)
def test_a_driver_that_fails_has_no_gpus(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(tmp_path, script, monkeypatch)
    assert nvidia_gpus() == ()


@WITHOUT_GPU
def test_without_a_driver_there_are_no_gpus() -> None:
    assert nvidia_gpus() == ()
    assert not has_nvidia_driver()
    with pytest.raises(DeviceError, match="cuda:1 was asked for, but this machine has no NVIDIA driver"):
        cuda_gpu(1)


def test_a_device_is_cuda_and_perhaps_a_number() -> None:
    assert [cuda_number(name, "x", "cuda[:N]") for name in ("cuda", "cuda:0", "cuda:12")] == [0, 0, 12]


@pytest.mark.parametrize("device", ["cuda:", "cuda:-1", "cuda:²", "cuda:1:2", "cudax", "gpu:0", ""])
def test_any_other_device_is_an_error_that_names_what_is_expected(device: str) -> None:
    with pytest.raises(DeviceError, match=r"the x backend has no device .*; expected auto or cuda\[:N\]"):
        cuda_number(device, "x", "auto or cuda[:N]")
