"""Fixtures of all contract tests."""

from tests.shared_renders import share_renders  # noqa: F401
