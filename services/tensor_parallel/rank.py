"""One rank of a divided model: a child process of a service that runs the batches it gets (group.py).

It ends when its service does: its pipe is closed then. Signals that end the service are ignored, so that the
service can finish its requests.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from fairlead import log
from fairlead.errors import FairleadError, exit_code
from services.tensor_parallel import frames

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 1.0


class RankModel(Protocol):
    """The part of a model that one rank holds."""

    @property
    def facts(self) -> Mapping[str, object]:
        """What the service has to know about the model, as JSON values; the same on every rank."""
        ...

    def run(self, arrays: bytes) -> bytes:
        """Run a batch."""
        ...


@dataclass(frozen=True, slots=True)
class Start:
    """What a service asks of its rank."""

    path: str
    """Folder or hub id of the model."""
    section: dict[str, Any]
    """The section of the service."""
    rank: int
    """Number of this rank."""
    size: int
    """Number of ranks."""
    meeting_point: Path
    """File over which the ranks find one another."""


def serve(load: Callable[[Start], RankModel]) -> int:
    """Run one rank until its service ends; return the exit code.

    Args:
        load: loads the part of the model, after the ranks have joined.
    """
    channel = _Channel()
    header = channel.first()
    start = Start(
        header["path"], header["section"], header["rank"], header["size"], Path(header["meeting_point"])
    )
    log.setup(**header["log"], fields={"rank": start.rank})
    try:
        model = load(start)
    except FairleadError as error:
        channel.send({"failed": str(error), "code": exit_code(error)})
        return exit_code(error)
    except Exception as error:
        logger.exception("rank %d cannot load its part of the model", start.rank)
        channel.send({"failed": f"{type(error).__name__}: {error}", "code": 1})
        return 1
    channel.send({"facts": dict(model.facts)})
    while True:
        number, arrays = channel.next_batch()
        error_text, found = "", b""
        try:
            found = model.run(arrays)
        except Exception as error:
            logger.exception("rank %d: batch %d failed", start.rank, number)
            error_text = f"{type(error).__name__}: {error}"
        channel.send(
            {"finished": number, "error": error_text}, found if start.rank == 0 and not error_text else b""
        )


class _Channel:
    """The pipes to the service."""

    def __init__(self) -> None:
        """Take standard input and output for messages; what libraries print becomes standard error."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._input: IO[bytes] = os.fdopen(os.dup(0), "rb")
        self._output: IO[bytes] = os.fdopen(os.dup(1), "wb")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._batches: queue.Queue[tuple[int, bytes]] = queue.Queue()

    def first(self) -> dict[str, Any]:
        """Return the first message; from then on, read batches and send beats."""
        message = frames.read(self._input)
        if message is None:
            os._exit(0)
        threading.Thread(target=self._read, name="batches", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        return message[0]

    def next_batch(self) -> tuple[int, bytes]:
        """Wait for a batch; return its number and its arrays."""
        return self._batches.get()

    def send(self, header: Mapping[str, object], arrays: bytes = b"") -> None:
        """Send a message; end this process if the service has ended."""
        try:
            with self._lock:
                frames.write(self._output, header, arrays)
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        while (message := frames.read(self._input)) is not None:
            header, arrays = message
            self._batches.put((header["batch"], arrays))
        # The service has ended. The main thread may be in a collective that never returns.
        os._exit(0)

    def _beat(self) -> None:
        main = threading.main_thread().ident or 0
        pause = threading.Event()
        while True:
            frame = sys._current_frames().get(main)
            line = ""
            if frame is not None:
                file = Path(frame.f_code.co_filename)
                line = f"{file.parent.name}/{file.name}:{frame.f_lineno} in {frame.f_code.co_name}"
            self.send({"line": line})
            pause.wait(_BEAT_SECONDS)
