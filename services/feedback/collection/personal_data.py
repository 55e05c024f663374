"""Masks personal data and secrets in texts by patterns: mail, phone, IBAN, card, IP address, URL with a
token, API key.

Numbers with check digits are masked only if these are right, so that order numbers stay. Patterns find no
names and no addresses of streets; a reviewer does. Knows neither the store nor HTTP.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A part of a text."""

    start: int
    """Index of its first character."""
    end: int
    """Index after its last."""
    kind: str
    """What it is, such as `EMAIL`."""


Detector = Callable[[str], Iterable[Span]]
"""Finds spans of personal data in a text."""

_IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "FK", "FO", "GL", "NL", "SD"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "MN", "XK"), 20),
    **dict.fromkeys(("CH", "CR", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "OM", "SO", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("LY", "PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "NI", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU", "YE"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    **dict.fromkeys(("LC",), 32),
    **dict.fromkeys(("RU",), 33),
}
"""Characters of the IBAN of each country (ISO 13616, the registry of SWIFT)."""

_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]{0,6000}+(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
    r"|\b(?:"
    r"(?:sk|pk|rk)[-_](?:live_|test_|proj-|ant-|or-)?[A-Za-z0-9_-]{16,256}"
    r"|gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_[A-Za-z0-9_]{20,255}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|xox[abeoprs]-[A-Za-z0-9-]{10,255}"
    r"|hf_[A-Za-z0-9]{20,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{32,255}|fl_[A-Za-z0-9_-]{20,128}"
    r"|eyJ[A-Za-z0-9_-]{10,4096}\.[A-Za-z0-9_-]{10,4096}\.[A-Za-z0-9_-]{10,4096}"
    r")(?![A-Za-z0-9_-])"
)
"""Secrets by the prefixes of those who issue them; JSON web tokens; private keys."""
_NAMED_SECRET = re.compile(
    r"(?i)\b(?:password|passwd|passphrase|pwd|secret|api[ _-]?key|access[ _-]?token|auth[ _-]?token|bearer)"
    r"(?:\s{0,3}[:=]\s{0,3}|\s(?=[A-Za-z0-9+/_.-]{20}))[\"']?(?P<value>[^\s\"',;]{6,512})"
)
_URL = re.compile(r"(?i)\bhttps?://[^\s<>\"'`]{1,4096}")
_TOKEN_NAME = re.compile(
    r"(?i)(?:^|[?&;#])[^=&;#]{0,40}?(?:token|key|secret|sig|passw(?:or)?d|pwd|auth|code|session|sid|jwt)"
    r"[^=&;#]{0,20}=[^&;#]{6}"
)
_LONG_PART = re.compile(r"[A-Za-z0-9_-]{32,}")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}\s?(?:@|\(at\)|\[at\])\s?"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])")
_CARD = re.compile(
    r"(?<![A-Za-z0-9])(?<![0-9][ .-])(?:[0-9]{13,19}"
    r"|[0-9]{4}(?P<a>[ .-])[0-9]{4}(?P=a)[0-9]{4}(?P=a)[0-9]{4}(?:(?P=a)[0-9]{3})?"
    r"|[0-9]{4}(?P<b>[ .-])[0-9]{6}(?P=b)[0-9]{4,5})(?![A-Za-z0-9])"
)
_IPV4 = re.compile(r"(?<![A-Za-z0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![A-Za-z0-9]|\.[0-9])")
_IPV6 = re.compile(r"(?<![A-Za-z0-9:.])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]{2,44}(?![A-Za-z0-9:])")
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9+])(?<![0-9][ .-])[+(]{0,2}[0-9](?:[ ().\-/]{0,3}[0-9]){6,39}(?![A-Za-z0-9])"
)
_PHONE = re.compile(
    r"(?:\+|00)[1-9](?:[ ().\-/]{0,3}[0-9]){7,13}"  # international
    r"|0[1-9][0-9]{8,10}|\(?0[1-9][0-9]{1,3}\)?[ \-/][0-9]{5,9}"  # with the zero of long distance
    r"|0[1-9](?:[ .-][0-9]{2}){4}|\(?0[1-9][0-9]{1,3}\)?[ -][0-9]{3,4}[ -][0-9]{3,4}"
    r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}"  # North America
)
_SUSPECT = re.compile(r"[0-9](?:[ .\-/]?[0-9]){6,39}|@[A-Za-z0-9_]{3,40}")


def find(text: str, detector: Detector | None = None) -> list[Span]:
    """Return the spans of personal data in a text, in order, none over another.

    Args:
        text: any text.
        detector: finds more than the patterns do.
    """
    found: list[Span] = []
    taken = bytearray(len(text))
    for source in (*_FINDERS, *([detector] if detector is not None else [])):
        for span in source(text):
            if taken.find(1, span.start, span.end) < 0:
                taken[span.start : span.end] = b"\x01" * (span.end - span.start)
                found.append(span)
    return sorted(found)


def mask(text: str, spans: Iterable[Span]) -> tuple[str, Counter[str]]:
    """Return the text with a placeholder such as `[EMAIL]` for each span, and how many there were by kind.

    Args:
        text: the text.
        spans: in order, none over another.
    """
    parts: list[str] = []
    counts: Counter[str] = Counter()
    end = 0
    for span in spans:
        parts += (text[end : span.start], f"[{span.kind}]")
        counts[span.kind] += 1
        end = span.end
    return "".join((*parts, text[end:])), counts


def placeholders(text: str) -> list[Span]:
    """Return the spans of placeholders that `mask` wrote."""
    return [Span(one.start(), one.end(), one[1]) for one in _PLACEHOLDER.finditer(text)]


def suspects(text: str) -> list[Span]:
    """Return what may be personal data and was not masked: long numbers, and names of users after `@`."""
    return [Span(one.start(), one.end(), "SUSPECT") for one in _SUSPECT.finditer(text)]


def is_card(digits: str) -> bool:
    """Return whether the last digit of a card's number is right (Luhn, ISO/IEC 7812-1)."""
    if digits[0] not in "23456" or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """Return whether the check digits of an IBAN without spaces are right (mod 97, ISO 13616)."""
    moved = text[4:] + text[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def _keys(text: str) -> Iterator[Span]:
    for found in _KEY.finditer(text):
        yield Span(found.start(), found.end(), "API_KEY")
    for found in _NAMED_SECRET.finditer(text):
        yield Span(found.start("value"), found.end("value"), "API_KEY")


def _urls(text: str) -> Iterator[Span]:
    for found in _URL.finditer(text):
        url = found[0].rstrip(".,;:!?)]}")
        try:
            parts = urlsplit(url)
        except ValueError:
            continue
        secret_part = any(
            any(character.isdigit() for character in part) for part in _LONG_PART.findall(parts.path)
        )
        if "@" in parts.netloc or secret_part or any(map(_TOKEN_NAME.search, (parts.query, parts.fragment))):
            yield Span(found.start(), found.start() + len(url), "URL_WITH_TOKEN")


def _emails(text: str) -> Iterator[Span]:
    return (Span(found.start(), found.end(), "EMAIL") for found in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[Span]:
    for found in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(found[0][:2].upper())
        if length is None:
            continue
        end, taken = found.start(), ""
        while end < len(text) and len(taken) < length:
            character = text[end]
            if character.isascii() and character.isalnum():
                taken += character
            elif character not in " -" or text[end - 1] in " -":
                break
            end += 1
        follows = text[end : end + 1]
        whole = len(taken) == length and not (follows.isascii() and follows.isalnum())
        if whole and is_iban(taken.upper()):
            yield Span(found.start(), end, "IBAN")


def _cards(text: str) -> Iterator[Span]:
    for found in _CARD.finditer(text):
        if is_card(re.sub(r"[^0-9]", "", found[0])):
            yield Span(found.start(), found.end(), "CARD")


def _addresses(text: str) -> Iterator[Span]:
    for pattern, kind in ((_IPV4, ipaddress.IPv4Address), (_IPV6, ipaddress.IPv6Address)):
        for found in pattern.finditer(text):
            address = found[0].rstrip(".")
            try:
                known = kind(address)
            except ValueError:
                continue
            if not (known.is_unspecified or known.is_loopback):
                yield Span(found.start(), found.start() + len(address), "IP_ADDRESS")


def _phones(text: str) -> Iterator[Span]:
    for found in _NUMBER.finditer(text):
        if _PHONE.fullmatch(found[0]):
            yield Span(found.start(), found.end(), "PHONE")


_FINDERS: tuple[Detector, ...] = (_keys, _urls, _emails, _ibans, _cards, _addresses, _phones)
"""In the order in which they take what several of them find."""
_PLACEHOLDER = re.compile(r"\[([A-Z][A-Z_]{1,31})\]")
