"""Tells torch to compute the same bits every time, or to refuse. Once per process, before any model runs."""

from __future__ import annotations

import torch


def require() -> None:
    """From here on an operation without a deterministic implementation raises RuntimeError.

    Threads and what shares a batch are the configuration's (`fairlead/config/determinism.py`).
    """
    torch.use_deterministic_algorithms(True)
