"""What a person says about a task, between the fields of its form and the store.

Fields name answers by the place at which they are shown, from 1: `place-2`, `quality-2`, `flag-2`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.errors import FairleadError
from services.feedback.pages.form import Fields, Form
from services.feedback.store.judged import Ranking, Said, Writing
from services.feedback.store.records import Offer

FLAGS: Mapping[str, str] = {
    "fails_task": "Does not do what was asked",
    "breaks_constraint": "Breaks a condition of the prompt",
    "hallucination": "States something made up",
    "inappropriate": "Out of place for an assistant",
    "harmful_advice": "Gives harmful advice",
    "encourages_harm": "Encourages violence, abuse or self-harm",
    "denigrates": "Denigrates a group of people",
    "sexual": "Sexual content",
    "violent": "Violent content",
    "opinion": "Expresses an opinion",
    "moral_judgment": "Judges morally",
}
"""Flags of an answer, those of table 3 of Ouyang et al. (2022), with what a page calls them."""
UNACCEPTABLE = "unacceptable"
"""Flag of both answers of a pair of which neither is good enough."""
SKIP_REASONS: Mapping[str, str] = {
    "unclear": "The prompt is unclear",
    "not_my_field": "Not my field",
    "harmful": "Harmful or distressing",
    "personal_data": "Contains personal data",
    "broken": "Something is broken",
    "other": "Something else",
}
"""Reasons to skip a task, with what a page calls them."""
STRENGTHS: Mapping[int, str] = {1: "barely", 2: "slightly", 3: "clearly", 4: "by far"}
"""By how much the better of two answers is better."""
QUALITIES = range(1, 8)
"""Overall quality, from bad to perfect (Ouyang et al. 2022, figure 12)."""
_LONGEST_SECONDS = 86_400.0


@dataclass
class Incomplete(FairleadError):
    """A form lacks something that the task needs."""

    missing: Sequence[tuple[str, str]]
    """The field to go to, and what is wrong."""


def layout_of(offer: Offer) -> str:
    """Return how a task is asked: its kind, but with two answers to rank as for a pair."""
    return "pair" if offer.kind == "rank" and len(offer.answers) == 2 else offer.kind


def said(form: Form, offer: Offer) -> Said:
    """Return what a form says.

    Raises:
        Incomplete: something is missing.
    """
    common: dict[str, Any] = {"note": form.one("note"), "seconds": seconds(form)}
    ids = [answer for answer, _ in offer.answers]
    if layout_of(offer) == "pair":
        return Ranking(
            ranks=_pair_ranks(form, ids), flags=_pair_flags(form, ids), **_strength(form), **common
        )
    if offer.kind == "rank":
        return Ranking(
            ranks=_ranks(form, ids),
            ratings={
                answer: value for place, answer in _places(ids) if (value := form.whole(f"quality-{place}"))
            },
            flags={answer: flags for place, answer in _places(ids) if (flags := form.all(f"flag-{place}"))},
            **common,
        )
    return _writing(form, offer, common)


def fields(body: Mapping[str, Any], offer: Offer) -> Fields:
    """Return the fields of a form that says what the body of an entry says."""
    found: dict[str, list[str]] = {"note": [str(body.get("note", ""))]}
    ids = [answer for answer, _ in offer.answers]
    if "text" in body:
        base = body.get("base")
        return found | {
            "text": [str(body["text"])],
            "base": [str(ids.index(base) + 1)] if base in ids else [],
            "own": ["yes"],
        }
    ranks, ratings, flags = body["ranks"], body.get("ratings", {}), body.get("flags", {})
    if layout_of(offer) == "pair":
        first, second = (ranks[answer] for answer in ids)
        verdict = "tie" if first == second else "1" if first < second else "2"
        bad = all(UNACCEPTABLE in flags.get(answer, ()) for answer in ids)
        strength = body.get("strength")
        return found | {
            "verdict": [verdict],
            "strength": [] if strength is None else [str(strength)],
            UNACCEPTABLE: ["yes"] if bad else [],
        }
    for place, answer in _places(ids):
        found[f"place-{place}"] = [str(ranks[answer])]
        found[f"quality-{place}"] = [str(ratings[answer])] if answer in ratings else []
        found[f"flag-{place}"] = list(flags.get(answer, ()))
    return found


def seconds(form: Form) -> float:
    """Return how long a person worked on a form.

    The script counts while the page is in use; without it, it is the time since the page was sent.
    """
    try:
        used, opened = float(form.one("seconds") or 0), float(form.one("opened") or 0)
    except ValueError:
        return 0.0
    found = used or (time.time() - opened if opened else 0.0)
    return round(min(max(found, 0.0), _LONGEST_SECONDS), 1) if found == found else 0.0  # noqa: PLR0124 - not NaN


def _places(ids: Sequence[str]) -> list[tuple[int, str]]:
    return list(enumerate(ids, start=1))


def _ranks(form: Form, ids: Sequence[str]) -> dict[str, int]:
    found = {answer: form.whole(f"place-{place}") for place, answer in _places(ids)}
    missing = [
        (f"place-{place}", f"Choose a place for answer {chr(ord('A') + place - 1)}.")
        for place, answer in _places(ids)
        if found[answer] is None
    ]
    if missing:
        raise Incomplete(missing)
    return {answer: rank for answer, rank in found.items() if rank is not None}


def _pair_ranks(form: Form, ids: Sequence[str]) -> dict[str, int]:
    verdict = form.one("verdict")
    if verdict not in ("1", "2", "tie"):
        raise Incomplete([("verdict", "Choose the better answer, or a tie.")])
    return {answer: 1 if verdict in ("tie", str(place)) else 2 for place, answer in _places(ids)}


def _pair_flags(form: Form, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(ids, (UNACCEPTABLE,)) if form.one(UNACCEPTABLE) else {}


def _strength(form: Form) -> dict[str, Any]:
    return {"strength": None if form.one("verdict") == "tie" else form.whole("strength")}


def _writing(form: Form, offer: Offer, common: Mapping[str, Any]) -> Writing:
    missing = []
    if not form.one("text").strip():
        missing.append(("text", "Write a text."))
    if not form.one("own"):
        missing.append(("own", "Confirm that you wrote this yourself."))
    base = None
    if offer.kind == "edit":
        place = form.whole("base")
        if place is None or not 1 <= place <= len(offer.answers):
            missing.append(("base", "Choose the answer that you started from."))
        else:
            base, text = offer.answers[place - 1]
            if form.one("text") == text:
                missing.append(("text", "Change the answer, or skip the task."))
    if missing:
        raise Incomplete(missing)
    return Writing(text=form.one("text"), base=base, details={"own": True}, **common)
