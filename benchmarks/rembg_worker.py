"""Runs rembg over pictures, warm, as often as it is told: for ``pipeline.py``, in rembg's own Python.

Imports nothing of segship. Reads one line for each turn, writes the masks of all pictures and prints the seconds.

    python rembg_worker.py OUT PICTURE...
"""

import sys
import time
from pathlib import Path

from PIL import Image
from rembg import new_session, remove

out, paths = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
out.mkdir(parents=True, exist_ok=True)
session = new_session("u2netp", providers=["CPUExecutionProvider"])
remove(Image.open(paths[0]), session=session, only_mask=True)
sys.stdout.write("ready\n")
sys.stdout.flush()
for _ in sys.stdin:
    start = time.perf_counter()
    for path in paths:
        remove(Image.open(path), session=session, only_mask=True).save(out / f"{path.stem}.png")
    sys.stdout.write(f"{time.perf_counter() - start}\n")
    sys.stdout.flush()
