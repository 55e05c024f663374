"""Ranks without a model: they return the sum of a batch, with a fault that the path of the model names.

The path is `FAULT:RANK`. A fault of a batch happens in the batches whose sum is negative.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping

import numpy as np

from fairlead.errors import ModelLoadError
from services.tensor_parallel import frames
from services.tensor_parallel.rank import Start, serve


class Sums:
    """Computes sums."""

    def __init__(self, start: Start) -> None:
        self._fault, _, rank = start.path.partition(":")
        self._is_faulty = rank in ("", str(start.rank))
        self.facts: Mapping[str, object] = {"size": start.size, "threads": start.section["threads"]}
        if not self._is_faulty:
            return
        if self._fault == "refused":
            raise ModelLoadError(f"no model {start.path!r}")
        if self._fault == "bug":
            raise ZeroDivisionError("division by zero")
        if self._fault == "exit":
            os._exit(7)
        if self._fault == "other":
            self.facts = {"size": 0}

    def run(self, arrays: bytes) -> bytes:
        print("a library prints to standard output")  # noqa: T201
        total = frames.unpacked(arrays)["x"].sum()
        if total < 0 and not self._is_faulty:
            time.sleep(1000)  # as in a collective, which the faulty rank never joins
        if total < 0:
            if self._fault == "error":
                raise ValueError("a negative sum")
            if self._fault == "hang":
                time.sleep(1000)
            if self._fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        return frames.packed({"sum": np.array([total])})


if __name__ == "__main__":
    sys.exit(serve(Sums))
