"""Collected prompts in both databases: what is kept, what is left out, decisions, forgetting."""

from __future__ import annotations

import pytest

from fairlead.errors import Conflict
from fairlead.types import Message
from services.feedback.collection.similarity import Likenesses
from services.feedback.store.collected import Bounds, NewCollected
from services.feedback.store.records import NewPrompt, NewTask
from tests.feedback_world import World

BOUNDS = Bounds(share=0.5, per_user=2, per_key=5, similarity=0.8)
LONG = "please say to me why the lamp that i ordered in march has not arrived and what you will do about it"


def exchange(world: World, text: str, *, user: str = "", key: str = "shop") -> NewCollected:
    turns = (Message("system", "be kind"), Message("user", text))
    like = Likenesses(world.store.collected.mark_secret(), prefix_characters=40).of(turns)
    return NewCollected(
        prompt=NewPrompt(turns, source="gateway", consent="asked", state="new"),
        user=user,
        api_key=key,
        request_id="r",
        weight_versions=("0.1",),
        metadata={"product": "lamp"},
        masked={"EMAIL": 1},
        exact=like.exact,
        prefix=like.prefix,
        bands=like.bands,
        signature=like.signature,
    )


def add(world: World, batch: str, *exchanges: NewCollected, bounds: Bounds = BOUNDS) -> dict[str, int]:
    found = world.store.collected.add(batch, exchanges, bounds, left_out={})
    return {str(outcome): number for outcome, number in found.items()}


def test_duplicates_and_limits_leave_prompts_out(world: World) -> None:
    first = [exchange(world, LONG, user="anna"), exchange(world, f"  {LONG.upper()} ", user="ben")]
    near = exchange(world, LONG.replace("lamp", "lamps"), user="ben")
    starts = exchange(world, LONG[:41] + "is blue and not red, which i do not like", user="ben")
    assert add(world, "1", *first, near, starts) == {"kept": 1, "duplicate": 1, "near_duplicate": 2}
    assert add(world, "1", exchange(world, "never")) == {}
    others = [exchange(world, f"{n} " + "abcdefgh"[n] * 40, user="anna") for n in range(3)]
    assert add(world, "2", *others) == {"kept": 1, "over_user": 2}
    # The same user of another key is another user; a key has a limit too.
    more = [exchange(world, "xyzuvw"[n] * 40, user=f"u{n}") for n in range(5)]
    assert add(world, "3", *more) == {"kept": 3, "over_key": 2}
    assert add(world, "4", exchange(world, "q" * 40, user="anna", key="other")) == {"kept": 1}
    counts = {(one["api_key"], one["outcome"]): one["number"] for one in world.store.collected.counts()}
    assert counts["shop", "kept"] == 5
    assert counts["shop", "near_duplicate"] == 2
    found = next(one for prompt, one in world.store.collected.page("new") if prompt.turns[1].content == LONG)
    assert found is not None
    assert (found.alike, found.share, found.masked, found.api_key) == (3, 0.5, {"EMAIL": 1}, "shop")


def test_decisions_forgetting_and_expiry(world: World) -> None:
    project = world.project()
    texts = ("my name is anna", "a second question", "harmful words here", "used in a task ?")
    add(world, "1", *(exchange(world, text, user=f"user {n}") for n, text in enumerate(texts)))
    page = [prompt for prompt, _ in world.store.collected.page("new")]
    ids = {prompt.turns[1].content: prompt.id for prompt in page}
    # Prompts of one batch have one time: the order is that of their ids.
    assert [one.id for one, _ in world.store.collected.page("new", after=page[1].id)] == [
        one.id for one in page[2:]
    ]
    decide = world.store.collected.decide
    masked = (Message("system", "be kind"), Message("user", "my name is [NAME]"))
    new = decide(ids[texts[0]], "screened", screener=world.person("rita"), masked=masked)
    decide(ids[texts[1]], "screened", screener=None)
    decide(ids[texts[3]], "screened", screener=None)
    gone = decide(ids[texts[2]], "rejected", screener=None, reason="harmful")
    assert (gone.turns, gone.state) == ((), "rejected")
    with pytest.raises(Conflict, match="rejected"):
        decide(gone.id, "screened", screener=None)
    # What is known of a masked prompt stays with it, and its old text does not come back; nor a rejected one.
    assert add(world, "2", exchange(world, texts[0]), exchange(world, texts[2])) == {"duplicate": 2}
    world.add(project, NewTask("write", NewPrompt((Message("system", "be kind"), Message("user", texts[3])))))
    pool, number = world.store.collected.pool(10, seed=3)
    assert ({one.prompt.id for one in pool}, number) == ({new.id, ids[texts[1]]}, 2)
    assert world.store.collected.pool(1, seed=3)[0] == pool[:1]
    subject = world.store.subject("user 0")
    assert new.subject == subject
    world.store.erasures.forget("subject", subject, actor="admin")
    assert [one.prompt.id for one in world.store.collected.pool(10, seed=0)[0]] == [ids[texts[1]]]
    assert add(world, "3", exchange(world, texts[0])) == {"kept": 1}
    world.clock.seconds += 100
    assert world.store.collected.expire(101) == 0
    assert world.store.collected.expire(99) == 1
    assert world.store.collected.page("new") == []
