"""Packing for models that share prefixes: the budget counts computed tokens; equal prefixes are grouped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.batching.packing import SharedPacking

Item = tuple[str | None, int]
"""Key of the prefix, and the length of the prefix."""


def choose(items: list[Item], lengths: list[int], budget: int):
    return SharedPacking[Item](lambda item: item).choose(items, lengths, max_batch_tokens=budget)


def cost(items: list[Item], lengths: list[int], chosen) -> int:
    """Return computed tokens by definition: every sequence in full, but each shared prefix once."""
    seen: set[str] = set()
    total = 0
    for index in chosen:
        key, shared = items[index]
        total += lengths[index] - (shared if key in seen else 0)
        if key is not None:
            seen.add(key)
    return total


@given(
    st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.integers(1, 60)), min_size=1, max_size=40),
    st.integers(1, 300),
)
def test_batch_includes_first_item_and_budget_counts_computed_tokens(drawn, budget):
    beginnings = {"a": 10, "b": 40, "c": 200, None: 0}
    items = [(key, beginnings[key]) for key, _ in drawn]
    lengths = [beginnings[key] + extra for key, extra in drawn]
    found = choose(items, lengths, budget)
    assert 0 in found.indices
    assert len(set(found.indices)) == len(found.indices)
    assert found.computed_tokens == cost(items, lengths, found.indices)
    assert len(found.indices) == 1 or found.computed_tokens <= budget


def test_equal_prefixes_are_grouped_before_earlier_items():
    items: list[Item] = [("a", 100), ("b", 100), (None, 0), ("a", 100), ("a", 100)]
    lengths = [120, 120, 30, 110, 110]
    assert choose(items, lengths, 150).indices == [0, 3, 4]
    assert choose(items, lengths, 150).computed_tokens == 140
    assert choose(items, lengths, 10_000).indices == [0, 3, 4, 1, 2]
