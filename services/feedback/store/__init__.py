"""The store: one set of statements over SQLite or PostgreSQL. See store.py."""

from __future__ import annotations

from services.feedback.store.store import Store, open_store

__all__ = ["Store", "open_store"]
