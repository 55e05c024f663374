"""Check a run's data before training: counts, lengths, truncation, duplicates and other suspect lines.

Uses the parsers of the loaders, the encoders of the stages, and the same split. An invalid line is recorded
and reading continues. Does not know the terminal.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fairlead.config import RunConfig
from fairlead.data import columns, sources
from fairlead.data.chat import Chat
from fairlead.data.comparisons import ALIKE, Preference, RankedResponses
from fairlead.data.demonstrations import Conversation, Demonstration, PlainText
from fairlead.data.fitting import EncodedAnswer, LeftOutPairs, fit
from fairlead.data.kinds import KINDS, Found, parser
from fairlead.data.lengths import Lengths, Record, Ruler, compared_texts, measure
from fairlead.data.lines import Line
from fairlead.data.records import heldout_key, heldout_names, is_heldout, near
from fairlead.data.thumbs import Thumb
from fairlead.errors import DataError, InvalidInput

_MAX_KEYS = 200
"""Keys that are counted: a line may use data as keys."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles of a length."""

    median: float
    """Median."""
    p90: float
    """90th percentile."""
    p99: float
    """99th percentile."""
    longest: int
    """Maximum."""


@dataclass(slots=True)
class SourceReport:
    """Counts and lengths over all sources of one kind."""

    kind: str
    """One of KINDS."""
    sources: tuple[str, ...]
    """Files, folders and datasets, as the configuration names them."""
    heldout_sources: tuple[str, ...]
    """Those of records that are only evaluated on; empty if a fraction of `sources` is held out."""
    unit: str
    """Unit of all lengths: `tokens` or `words`."""
    limit: int | None = None
    """Longest sequence that the stage accepts, in tokens; None if it is unknown or nothing is truncated."""
    lines: int = 0
    """Objects or rows, including invalid ones."""
    bad: int = 0
    """Invalid lines."""
    broken: int = 0
    """Sources that are missing, damaged or empty."""
    errors: list[str] = field(default_factory=list)
    """Messages of the first invalid lines and broken sources."""
    formats: dict[str, int] = field(default_factory=dict)
    """Lines of each format."""
    read_as: dict[str, str] = field(default_factory=dict)
    """Keys of lines that are read, and as what."""
    not_read: dict[str, int] = field(default_factory=dict)
    """Occurrences of keys that are not read; one of messages is `messages[].name`."""
    train: int = 0
    """Training lines."""
    heldout: int = 0
    """Held-out lines."""
    prompt: Spread | None = None
    """Lengths of prompts."""
    answer: Spread | None = None
    """Lengths of answers, and of plain text."""
    truncated: int | None = None
    """Sequences longer than the limit, which are truncated; None if lengths are not in tokens."""
    dropped: int | None = None
    """Sequences left out because the prompt fills the limit, or, of preferences, the answer; None if lengths
    are not in tokens."""
    left_out: LeftOutPairs | None = None
    """Pairs of preferences that cannot be learnt; None if lengths are not in tokens."""
    too_short: int = 0
    """Sentences left out because nothing follows the prompt."""
    duplicates: int = 0
    """Lines that repeat an earlier line, with the same `judgment`, or else `labeler`, if they have such a
    key."""
    repeated_prompts: int = 0
    """Lines whose prompt occurred before, from the same `labeler` if they have such a key."""
    on_both_sides: int = 0
    """Held-out lines whose prompt is also trained on, ignoring case and white space."""
    elsewhere: int = 0
    """Held-out lines whose prompt another kind of source trains on, ignoring case and white space."""
    ties: int = 0
    """Tied pairs of rankings."""
    all_tied: int = 0
    """Rankings in which every pair is a tie; they are left out."""
    alike: int = 0
    """Invalid lines whose two answers are identical."""
    empty_answers: int = 0
    """Blank answers, where they are allowed."""
    control_tokens: dict[str, int] = field(default_factory=dict)
    """Plain prompts and plain texts that contain a control token of the tokenizer, as a text that a chat
    template has already rendered does; by token."""


def check(
    config: RunConfig, *, rulers: dict[str, Ruler], limits: dict[str, int], max_errors: int
) -> list[SourceReport]:
    """Check every source that `[data]` names.

    Args:
        config: names the sources, the split and the tie margin.
        rulers: measures the lengths of each kind.
        limits: longest sequence of each kind, in tokens; used only where the ruler counts tokens.
        max_errors: how many invalid lines of a kind are reported; all are counted.
    """
    checks = [
        _KindCheck(config, kind, rulers[kind], limits.get(kind), max_errors)
        for kind in KINDS
        if sources.names(config, kind) or heldout_names(config, kind)
    ]
    for one in checks:
        one.read()
    for one in checks:
        others = set[int]().union(*(other.trained for other in checks if other is not one))
        one.report.elsewhere = sum(key in others for key in one.heldout)
    return [one.report for one in checks]


class _KindCheck:
    """Reads the sources of one kind and fills a report."""

    def __init__(
        self, config: RunConfig, kind: str, ruler: Ruler, limit: int | None, max_errors: int
    ) -> None:
        self._config = config
        self._kind = kind
        self._ruler = ruler
        self._max_errors = max_errors
        self._parse = parser(config, kind)
        self.report = SourceReport(
            kind=kind,
            sources=sources.names(config, kind),
            heldout_sources=heldout_names(config, kind),
            unit=ruler.unit,
            limit=limit if ruler.unit == "tokens" else None,
        )
        self.trained = set[int]()
        """Hashes of the training prompts, without case and white space."""
        self.heldout: list[int] = []
        """The same hashes of the held-out lines."""
        self._prompt_lengths = array("q")
        self._answer_lengths = array("q")
        self._lines = set[int]()
        self._prompts = set[int]()
        self._cut_answers = self._long_answers = 0
        if kind == "preferences" and ruler.unit == "tokens":
            self.report.left_out = LeftOutPairs()

    def read(self) -> None:
        """Read the sources and fill the report."""
        report = self.report
        for name in report.sources:
            self._read_source(name, f"data.{self._kind}", heldout=False)
        for name in report.heldout_sources:
            self._read_source(name, f"data.{heldout_key(self._kind)}", heldout=True)
        report.prompt = _spread([length for length in self._prompt_lengths if length])
        report.answer = _spread(self._answer_lengths) if self._kind != "prompts" else None
        report.on_both_sides = sum(key in self.trained for key in self.heldout)
        if report.limit is not None:
            self._fit(report.limit)

    def _read_source(self, name: str, field: str, *, heldout: bool) -> None:
        try:
            for line in sources.scan(self._config, name, field=field):
                self.report.lines += 1
                self._add(line, heldout=heldout)
        except InvalidInput as error:
            self.report.broken += 1
            self._record(error)

    def _add(self, line: Line | DataError, *, heldout: bool) -> None:
        found = sources.attempt(line, self._parse)
        try:
            if isinstance(found, DataError):
                raise found
            lengths = list(measure(found.record, self._ruler))
        except InvalidInput as error:
            self.report.bad += 1
            self.report.alike += error.got == ALIKE
            self._record(error)
            return
        for one in lengths:
            self._prompt_lengths.append(one.prompt)
            self._answer_lengths.append(one.answer)
        if isinstance(found.record, Preference | RankedResponses) and lengths:
            self._fit_pairs(found.record, lengths)
        if not self.report.heldout_sources:
            heldout = is_heldout(self._config, found.split_key)
        assert isinstance(line, Line)
        self._count_keys(line)
        for name in self._ruler.control_tokens(_plain_prompt(found.record)):
            self.report.control_tokens[name] = self.report.control_tokens.get(name, 0) + 1
        self._count(found, line, heldout=heldout)

    def _record(self, error: InvalidInput) -> None:
        if len(self.report.errors) < self._max_errors:
            self.report.errors.append(str(error))

    def _count_keys(self, line: Line) -> None:
        for key, meaning in columns.read_as(self._kind, line).items():
            self.report.read_as.setdefault(key, meaning)
        for key in columns.not_read(self._kind, line):
            if key in self.report.not_read or len(self.report.not_read) < _MAX_KEYS:
                self.report.not_read[key] = self.report.not_read.get(key, 0) + 1

    def _count(self, found: Found, line: Line, *, heldout: bool) -> None:
        record, report = found.record, self.report
        report.formats[found.format] = report.formats.get(found.format, 0) + 1
        report.heldout += heldout
        report.train += not heldout
        key = hash(near(found.split_key))
        if heldout:
            self.heldout.append(key)
        else:
            self.trained.add(key)
        # Labelers who agree on a task say the same, each in a line of its own.
        labeler = str(line.values.get("labeler") or "")
        report.duplicates += _seen(self._lines, (record, str(line.values.get("judgment") or labeler)))
        prompt = _prompt_of(record)
        report.repeated_prompts += bool(prompt) and _seen(self._prompts, (prompt, labeler))
        if isinstance(record, RankedResponses):
            report.ties += record.num_ties
            report.all_tied += not record.pairs
            report.empty_answers += sum(not text.strip() for text in record.texts)
        elif isinstance(record, Preference):
            report.empty_answers += sum(not text.strip() for text in (record.chosen, record.rejected))
        elif isinstance(record, Thumb):
            report.empty_answers += not record.answer.strip()
        elif isinstance(record, Demonstration):
            # Only sentences can have an empty completion: a demonstration without one is an invalid line.
            report.too_short += not record.completion

    def _fit_pairs(self, record: Preference | RankedResponses, lengths: Sequence[Lengths]) -> None:
        """Count the pairs of a line that cannot be learnt, and the answers whose prompt will be cut."""
        report = self.report
        if report.left_out is None:
            return
        limit = report.limit or sys.maxsize
        texts = compared_texts(record)
        answers = {
            text: EncodedAnswer(one.answer, one.content) for text, one in zip(texts, lengths, strict=True)
        }
        pairs = record.compared
        indices = [(texts.index(pair.winner), texts.index(pair.loser)) for pair in pairs]
        fitted = fit(lengths[0].prompt, list(answers.values()), indices, max_tokens=limit)
        report.left_out.add(pairs, fitted, answers, max_tokens=limit)
        if report.limit is not None:
            cut = fitted.prompt_tokens < lengths[0].prompt
            self._cut_answers += len(fitted.answers) * cut
            self._long_answers += sum(one.answer >= limit for one in lengths)

    def _fit(self, limit: int) -> None:
        """Count the sequences that the stage will drop or truncate, by its own rules."""
        if self._kind == "preferences":  # counted line by line
            self.report.truncated, self.report.dropped = self._cut_answers, self._long_answers
            return
        prompts = np.array(self._prompt_lengths)
        answers = np.array(self._answer_lengths)
        added = self._config.sampling.max_new_tokens if self._kind == "prompts" else answers
        # Plain text has no prompt and is split into rows. An answer with a thumb is never cut, its prompt is.
        dropped = (answers if self._kind == "thumbs" else prompts) >= limit
        self.report.dropped = int(dropped.sum())
        self.report.truncated = int((~dropped & (prompts > 0) & (prompts + added > limit)).sum())


def _spread(lengths: Sequence[int]) -> Spread | None:
    if not lengths:
        return None
    median, p90, p99 = (float(value) for value in np.quantile(lengths, [0.5, 0.9, 0.99]))
    return Spread(median, p90, p99, max(lengths))


def _seen(known: set[int], value: object) -> bool:
    key = hash(value)
    if key in known:
        return True
    known.add(key)
    return False


def _prompt_of(record: Record) -> object:
    if isinstance(record, str | Chat | PlainText):
        return None  # the whole line is the prompt
    return record.messages[:-1] if isinstance(record, Conversation) else record.prompt


def _plain_prompt(record: Record) -> str:
    """Return the prompt of a record, or its plain text; empty if the prompt is messages."""
    if isinstance(record, PlainText):
        return record.text
    prompt = record if isinstance(record, str | Chat | Conversation) else record.prompt
    return prompt if isinstance(prompt, str) else ""
