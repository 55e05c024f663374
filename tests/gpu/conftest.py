"""Tests that need a GPU; they run with exact float32 matrix products."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def exact_float32():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU, but torch finds none")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
