import subprocess
import sys
from pathlib import Path

import pytest

HEAPS = """
import ctypes, sys, threading
from segship.runtime.heap import share_one_heap
if sys.argv[1] == "shared":
    share_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(4)
def work():
    libc.malloc(10_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
out = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(out))
libc.fclose(ctypes.c_void_p(out))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other heaps")
@pytest.mark.parametrize(("how", "is_one"), [("shared", True), ("apart", False)])
def test_threads_share_one_heap_where_that_is_asked_for(tmp_path: Path, how: str, is_one: bool) -> None:
    told = tmp_path / "heaps.xml"
    subprocess.run([sys.executable, "-c", HEAPS, how, str(told)], check=True)
    assert (told.read_text().count("<heap nr=") == 1) == is_one
