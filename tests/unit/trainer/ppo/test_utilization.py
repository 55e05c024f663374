"""MFU: by hand for a small case, and none where it is not known."""

from __future__ import annotations

import pytest
import torch

from fairlead.config import RunConfig
from trainer.ppo.utilization import Utilization, peak_of


def test_ratio_is_that_of_the_formula():
    # 1B parameters, one epoch: 6e9 FLOPs a token; 10,000 tokens in a second on one A100.
    found = Utilization(6e9, 3.12e14).ratio(tokens=10_000, seconds=1.0)
    assert found == pytest.approx(6e13 / 3.12e14)


def test_peak_is_found_by_the_name_of_the_gpu():
    assert peak_of("NVIDIA H200") == 9.89e14
    assert peak_of("NVIDIA L40S") == 3.62e14
    assert peak_of("NVIDIA GeForce GTX 1080") is None


def test_there_is_no_ratio_on_a_cpu():
    assert Utilization.of(RunConfig(), torch.device("cpu"), num_gpus=1) is None
