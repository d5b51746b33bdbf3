import pytest
import torch

from segship.runtime.errors import DeviceError
from segship.training.device import pick_device


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "meta", "", "cuda:-1"])
def test_a_device_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"'{name}'; expected auto, cpu or cuda\[:N\]"):
        pick_device(name)


def test_a_cuda_device_that_is_not_there_is_refused_not_replaced() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=rf"cuda:{count} was asked for.*finds {count} CUDA devices.*--device cpu"):
        pick_device(f"cuda:{count}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_it_is_refused_by_name_and_auto_is_the_cpu() -> None:
    with pytest.raises(DeviceError, match=r"cuda was asked for.*finds 0 CUDA devices"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")
