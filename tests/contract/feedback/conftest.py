"""Stores over both databases."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.feedback_world import World, open_world, schema_of


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Return the address and the folder of a store that is not there yet."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback" / "feedback.db"), tmp_path / "feedback"
    server, folder = request.getfixturevalue("postgres")
    return schema_of(server, f"s{secrets.token_hex(6)}"), folder


@pytest.fixture
def world(place: tuple[str, Path]) -> Iterator[World]:
    """Yield an empty store."""
    found = open_world(*place)
    yield found
    found.store.close()


@pytest.fixture
def reopened(place: tuple[str, Path]) -> Iterator[Callable[[], World]]:
    """Return a function that opens the same store once more."""
    opened: list[World] = []

    def reopen() -> World:
        opened.append(open_world(*place))
        return opened[-1]

    yield reopen
    for one in opened:
        one.store.close()
