"""The process in which an isolated engine lives: ``python -m segship.runtime.backends.isolated_child``.

It takes messages from its standard input and answers on its standard output (see ``framing``): first what to load, then
batches. Arguments, if any, are the descriptors of shared memory for batches and for outputs. Whatever the engine prints
goes to its standard error. It ends when its standard input does, so that it outlives its parent in no case.
"""

import dataclasses
import os
import queue
import signal
import sys
import threading
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from segship.runtime.backends import Backend, load_backend
from segship.runtime.backends.framing import FramingError, Message, private_streams, receive, send
from segship.runtime.backends.options import EngineOptions
from segship.runtime.backends.shared_area import SharedArea
from segship.runtime.card import ModelCard
from segship.runtime.error_transport import error_values
from segship.runtime.errors import BackendError, one_line
from segship.runtime.strict import parse


def main() -> NoReturn:
    """Load what the first message names, run what the others bring, until the parent goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard's interrupt is for the parent, which then closes
    requests, replies = private_streams()
    batches, outputs = (SharedArea(int(text)) for text in sys.argv[1:]) if sys.argv[1:] else (None, None)
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_take_in, args=(requests, batches, inbox), daemon=True).start()
    backend: Backend | None = None
    while True:
        header, batch = inbox.get()
        output = None
        try:
            if backend is None:
                backend = _load(header)
                reply: dict[str, Any] = {"info": dataclasses.asdict(backend.info)}
            elif batch is None:
                raise BackendError("there is no batch to run")
            else:
                reply, output = {}, np.asarray(backend.run(batch))
        except Exception as error:  # noqa: BLE001  # handed on to the parent, which raises it
            reply, output = error_values(error), None
        try:
            send(replies, reply, output, outputs)
        except OSError:
            os._exit(1)  # nobody is left to answer, or no memory for the answer


def _take_in(requests: FileIO, batches: SharedArea | None, inbox: "queue.SimpleQueue[Message]") -> None:
    """Read ahead of the engine, so that the end of the parent is noticed while a run is going on."""
    try:
        while (message := receive(requests, batches)) is not None:
            inbox.put(message)
    except (MemoryError, FramingError, OSError) as error:
        os.write(2, f"the batch could not be taken in ({type(error).__name__} {one_line(error)})\n".encode())
        os._exit(1)
    os._exit(0)


def _load(header: dict[str, Any]) -> Backend:
    model = Path(header["model"])
    card = ModelCard.from_json(header["card"], origin=str(model))
    options = parse(EngineOptions, header["options"], "options", BackendError)
    _limit(header["memory_limit_mb"])
    return load_backend(header["name"], model, card, header["device"], options)


def _limit(memory_mb: int | None) -> None:
    """Bound the memory that this process may take; and let it leave no picture of it on the disk when it crashes."""
    if sys.platform == "win32":
        if memory_mb is not None:
            raise BackendError("this system cannot limit the memory of an isolated engine; leave out the limit")
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb is not None:
        size = memory_mb << 20
        # What is reserved without being used, as engines do by the gigabyte, counts for RLIMIT_AS but not for this one.
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


if __name__ == "__main__":
    main()
