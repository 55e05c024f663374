"""Masking by patterns: planted data of each kind, and similar numbers whose check digits are wrong."""

from __future__ import annotations

import random
import re

import pytest

from services.feedback.collection.personal_data import find, is_iban, mask, placeholders

ISSUERS = ("4", "51", "55", "34", "37", "6011", "2221", "3530")
FORMATS = ("{0}", "{0} {1}", "my card is {0}.", "Card:{0};", "({0})", "Zahl mit {0}, bitte")


def masked(text: str) -> str:
    return mask(text, find(text))[0]


def card(rng: random.Random, *, right: bool = True) -> str:
    """Return a card number, made without the code under test."""
    start = rng.choice(ISSUERS)
    length = 15 if start in ("34", "37") else 16
    digits = start + "".join(str(rng.randrange(10)) for _ in range(length - 1 - len(start)))
    for last in range(10):
        total = 0
        for place, digit in enumerate(reversed(digits + str(last))):
            value = int(digit) * (2 if place % 2 else 1)
            total += value // 10 + value % 10
        if (total % 10 == 0) == right:
            digits += str(last)
            break
    separator = rng.choice(("", " ", "-"))
    sizes = (4, 6, 5) if length == 15 else (4, 4, 4, 4)
    parts, at = [], 0
    for size in sizes:
        parts.append(digits[at : at + size])
        at += size
    return separator.join(parts)


def iban(rng: random.Random, *, right: bool = True) -> str:
    country, length = rng.choice((("DE", 22), ("GB", 22), ("FR", 27), ("NL", 18), ("CH", 21), ("MT", 31)))
    bank = "".join(rng.choice("ABCDEFGHIJ") for _ in range(4)) if country in ("GB", "NL", "MT") else ""
    account = bank + "".join(str(rng.randrange(10)) for _ in range(length - 4 - len(bank)))
    number = "".join(str(ord(one) - 55) if one.isalpha() else one for one in account + country + "00")
    check = 98 - int(number) % 97
    if not right:
        check = (check + rng.randrange(1, 90)) % 97 + 1 if check < 90 else check - 5
    whole = f"{country}{check:02}{account}"
    assert is_iban(whole) == right
    return " ".join(re.findall(".{1,4}", whole)) if rng.random() < 0.5 else whole


def test_planted_cards_ibans_and_mails_are_masked_and_wrong_check_digits_are_not() -> None:
    rng = random.Random(7)
    for number in range(100):
        shape = FORMATS[number % len(FORMATS)]
        for right, kind, value in (
            (True, "CARD", card(rng)),
            (True, "IBAN", iban(rng)),
            (True, "EMAIL", f"anna.{number}+x@mail-{number}.example.co.uk"),
            (False, "CARD", card(rng, right=False)),
            (False, "IBAN", iban(rng, right=False)),
        ):
            text = shape.format(value, "thanks")
            expected = shape.format(f"[{kind}]", "thanks") if right else text
            assert masked(text) == expected, (kind, right)


KINDS = (
    ("call +49 (0)30 1234-5678 or 0171 2345678", "call [PHONE] or [PHONE]"),
    ("(415) 555-2671, 1-415-555-2671, 06 12 34 56 78", "[PHONE], [PHONE], [PHONE]"),
    ("020 7946 0958", "[PHONE]"),
    ("host 203.0.113.7 and 2001:db8::1 at 12:30:45", "host [IP_ADDRESS] and [IP_ADDRESS] at 12:30:45"),
    ("https://x.example/?token=abcdef1 is secret", "[URL_WITH_TOKEN] is secret"),
    ("https://u:pw@x.example/", "[URL_WITH_TOKEN]"),
    ("https://x.example/reset/0a1b2c3d4e5f60718293a4b5c6d7e8f9.", "[URL_WITH_TOKEN]."),
    ("key sk-proj-abcdefghijklmnop1234 AKIAABCDEFGHIJKLMNOP", "key [API_KEY] [API_KEY]"),
    ("ghp_abcdefghijklmnopqrstuvwx", "[API_KEY]"),
    ("password: hunter22 and api_key='abc12345'", "password: [API_KEY] and api_key='[API_KEY]'"),
    ("anna (at) example.org", "[EMAIL]"),
    ("mail anna@example.org, not @anna nor a@b", "mail [EMAIL], not @anna nor a@b"),
)
UNCHANGED = (
    "see https://x.example/a?b=1",
    "order 2026-11-29, 10 000 000 km, part 1234567890, version 3.14.15",
    "the password is secret and the token expires",
)


@pytest.mark.parametrize(("text", "expected"), [*KINDS, *((text, text) for text in UNCHANGED)])
def test_kinds_of_personal_data(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(masked(text)) == masked(text)
    assert [one.kind for one in placeholders(expected)] == re.findall(r"\[([A-Z_]+)\]", expected)


@pytest.mark.parametrize(
    "text",
    ["-----BEGIN PRIVATE KEY-----", "a", "1 ", "a@", "eyJ.", "https://", "1:", "0 (", "DE89", "token="],
)
def test_hostile_texts_end(text: str) -> None:
    find(text * (200_000 // len(text)))
