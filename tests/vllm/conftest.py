"""Tests in an environment with vLLM, which the ordinary one does not have; see the target vllm-env."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True, scope="session")
def _environment() -> None:
    if find_spec("vllm") is None:
        pytest.skip(
            "vLLM is not installed here: run `make vllm-env`; then `make test-slow` runs this with it"
        )
