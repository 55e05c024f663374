"""Rankings as pairs."""

from __future__ import annotations

from fairlead.rounds.labelers import pairs


def test_pairs_leave_ties_out_and_put_the_better_first() -> None:
    responses = [{"text": text, "rank": rank} for text, rank in (("x", 2.5), ("y", 1), ("z", 2.5), ("w", 4))]
    found = set(pairs({"prompt": "p", "responses": responses}))
    assert found == {("y", "x"), ("y", "z"), ("y", "w"), ("x", "w"), ("z", "w")}
