"""A project of the feedback service with people, judgments and texts such as real ones have."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from fairlead.types import Message
from services.feedback.store import Store
from services.feedback.store.judged import Filter, Ranking
from services.feedback.store.records import NewAnswer, NewPerson, NewPrompt, NewTask, ProjectSettings

PROMPTS = (
    "My parcel says *delivered*, but it is not here. What can I do?",
    "Where is my parcel? The tracking page has not changed since Monday.",
    "The driver says that he gave my parcel to somebody. I have not got it.",
    "Can you send my parcel again? It has not arrived.",
    "Nobody was at home, and now I cannot find my parcel.",
)
ANSWERS = (
    """I am sorry that your parcel is missing. Please try these steps:

1. **Look around** and ask the neighbours.
2. Check the *photo of the delivery* in the tracking page.
3. If it is still missing tomorrow, reply here and we send a new one.""",
    "Contact the carrier.",
    "That should not happen. We have opened a search with the carrier, which takes up to three days. You "
    "need not do anything; we write to you as soon as we know more. If it is not found, you choose between a "
    "refund and a new parcel.",
    """Parcels are often left with a neighbour. You can see the place in the app:

```
Orders → Track → Proof of delivery
```

| Step | Time |
|---|---|
| Search | 3 days |
| Refund | 5 days |

> Please keep the number of the order at hand.""",
)
GUIDELINES = (
    """# What we look for

Rank answers by how much they help the person who asked.

- **Helpful** first: does it solve the problem?
- Then *honest*: nothing made up.
- Ties are welcome.""",
    """# What we look for

Rank answers by how much they help the person who asked.

- **Helpful** first: does it solve the problem, with the next step?
- Then *honest*: nothing made up.
- A short answer is not worse.
- Ties are welcome.""",
)
LABELERS = ("anna", "ben", "cara", "dora")


@dataclass(frozen=True)
class Scene:
    """What was made."""

    project: str
    snapshot: str
    decided: str
    """Id of a task about which people disagree."""


def populate(store: Store, *, tasks: int = 24) -> Scene:
    """Fill the project `default`: four labelers agree mostly, one of them ranks at random."""
    known = store.projects.get("default")
    kinds = ("rank", "pair", "write", "edit", "prompt")
    settings = ProjectSettings("default", kinds=kinds, overlap=3, shared_share=1.0)
    store.projects.change(known.id, settings)
    for text in GUIDELINES:
        store.projects.add_guideline(known.id, text)
    chance = random.Random(7)
    store.tasks.add(known.id, [_task(number, 3 + number % 2) for number in range(tasks)])
    gold = {"ranks": [1, 2, 3], "explanation": "The first answer names the next step."}
    store.tasks.add(known.id, [replace(_task(200 + number, 3), why="gold", gold=gold) for number in range(2)])
    store.prompts.add([NewPrompt((Message("user", "I am Eva, 030 123456."),), source="gateway", state="new")])
    people = [store.people.add(NewPerson("labeler", handle, active=True)).id for handle in LABELERS]
    store.people.add(NewPerson("labeler", "emil", cohort="heldout"))
    judge = store.people.add(NewPerson("judge", "judge-7b"))
    for turn in range(tasks):
        for person, handle in zip(people, LABELERS, strict=True):
            _judge(store, known.id, person, chance, is_random=handle == "dora", skips=turn % 9 == 8)
        _judge(store, known.id, judge.id, chance, is_random=turn % 2 == 0, skips=False)
    snapshot = store.snapshots.make(Filter(known.id)).digest
    _rounds(store, known.id)
    lead = store.people.add(NewPerson("labeler", "lena", role="lead", active=True))
    task = next(one for one in store.tasks.page(known.id) if one.state == "closed")
    ranks = {answer: place for place, answer in enumerate(task.answers, start=1)}
    store.judgments.adjudicate(task.id, lead.id, Ranking(ranks, note="The first one names the next step."))
    store.accesses.add(lead.id, "export", snapshot)
    # The next tasks of anybody who comes new, of every kind.
    store.tasks.add(known.id, [_task(300 + number, 3 + number % 2, priority=1) for number in range(3)])
    written = [("pair", 2), ("edit", 3), ("write", 0), ("prompt", 0)]
    for number, (kind, answers) in enumerate(written):
        store.tasks.add(known.id, [_task(100 + number, answers, kind=kind, priority=-number)])
    return Scene("default", snapshot, task.id)


def _rounds(store: Store, project: str) -> None:
    """Let a run have finished the first round, and wait for judgments of the second."""
    made_from = store.snapshots.make(Filter(project, rounds=(0,))).digest
    details = {"run": "help", "round": 0}
    place = "/runs/help/round-0"
    store.artifacts.add("reward_model", "9" * 64, [made_from], place=f"{place}/reward_model", details=details)
    store.artifacts.add("policy", "8" * 64, ["9" * 64], place=f"{place}/policy", details=details)
    gate = {"accuracy": 0.71, "accuracy_before": 0.5, "difference": 0.21, "pairs": 120, "passes": True}
    store.rounds.report(project, "help", 0, {"step": "evaluate", "state": "done", "gate": gate})
    store.rounds.report(project, "help", 1, {"step": "judgments", "wanted": 200})


def _task(number: int, answers: int, *, kind: str = "rank", priority: int = 0) -> NewTask:
    turns = (
        Message("system", "You help the customers of a shop."),
        Message("user", "Hello, I have a question about my order."),
        Message("assistant", "Gladly. What is it about?"),
        Message("user", f"{PROMPTS[number % len(PROMPTS)]} (Order {1000 + number})"),
    )
    prompt = NewPrompt(turns[-1:] if number % 3 else turns)
    texts = [ANSWERS[(number + place) % len(ANSWERS)] for place in range(answers)]
    found = tuple(NewAnswer(text, run="secret-run", weight_version=f"secret.{number}") for text in texts)
    return NewTask(kind, prompt, found, priority=priority)


def _judge(
    store: Store, project: str, person: str, chance: random.Random, *, is_random: bool, skips: bool
) -> None:
    offer = store.leases.take(person, project)
    if offer is None:
        return
    if skips and chance.random() < 0.6:
        reason = chance.choice(("unclear", "unclear", "not_my_field"))
        store.judgments.skip(offer.assignment.id, person, reason)
        return
    worth = {
        answer: (0 if is_random else len(text) / 60) + chance.gauss(0, 1) for answer, text in offer.answers
    }
    order = sorted(worth, key=lambda answer: -worth[answer])
    ranks = {answer: place for place, answer in enumerate(order, start=1)}
    if chance.random() < 0.3:
        ranks[order[1]] = ranks[order[0]]
    said = Ranking(ranks, ratings={order[0]: 6}, seconds=chance.uniform(20, 90))
    store.judgments.hand_in(offer.assignment.id, person, said)
