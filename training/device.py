"""The device that PyTorch computes on."""

import torch

from segship.runtime.errors import DeviceError


def pick_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda[:N]`` names.

    On CUDA, float32 then means float32: TF32, which keeps 10 bits of its fraction, is turned off.

    Raises:
        DeviceError: if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"no device is called {name!r}; expected auto, cpu or cuda[:N]") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"no device is called {name!r}; expected auto, cpu or cuda[:N]")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"{name} was asked for, but this PyTorch ({torch.__version__}) finds {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu, or install a CUDA build of PyTorch and the NVIDIA driver"
        )
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return device
