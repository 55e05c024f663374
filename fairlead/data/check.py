"""A look at a run's data before anything is trained on it: counts, lengths, cuts, and what is suspect.

Reads with the loaders' own parsers, measures with the encoders of the stages, splits as they split; a bad
line is noted and the reading goes on. Knows no terminal.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from fairlead.config import RunConfig
from fairlead.data import sources
from fairlead.data.chat import Chat
from fairlead.data.comparisons import ALIKE, Preference, RankedResponses
from fairlead.data.demonstrations import Conversation, Demonstration, PlainText
from fairlead.data.findings import SourceReport, Spread
from fairlead.data.kinds import KINDS, Found, parser
from fairlead.data.lengths import Record, Ruler, measure
from fairlead.data.lines import Line
from fairlead.data.records import is_heldout
from fairlead.errors import DataError, InvalidInput


def check(
    config: RunConfig, *, rulers: dict[str, Ruler], limits: dict[str, int], max_errors: int
) -> list[SourceReport]:
    """Looks at everything that `[data]` names.

    Args:
        config: names the sources, the split and what is a tie.
        rulers: what measures each kind.
        limits: longest sequence of each kind, in tokens; read only where the ruler counts tokens.
        max_errors: bad lines of a kind that are told; all are counted.
    """
    surveys = [
        _Survey(config, kind, rulers[kind], limits.get(kind), max_errors)
        for kind in KINDS
        if sources.names(config, kind)
    ]
    for survey in surveys:
        survey.read()
    for survey in surveys:
        others = set[int]().union(*(other.trained for other in surveys if other is not survey))
        survey.report.elsewhere = sum(key in others for key in survey.held)
    return [survey.report for survey in surveys]


class _Survey:
    """Goes through the sources of one kind."""

    def __init__(
        self, config: RunConfig, kind: str, ruler: Ruler, limit: int | None, max_errors: int
    ) -> None:
        self._config, self._kind, self._ruler, self._max_errors = config, kind, ruler, max_errors
        self._parse = parser(config, kind)
        self.report = SourceReport(
            kind=kind,
            sources=sources.names(config, kind),
            unit=ruler.unit,
            limit=limit if ruler.unit == "tokens" else None,
        )
        self.trained = set[int]()
        """Prompts of training, but for case and white space, as hashes."""
        self.held: list[int] = []
        """The same of the lines held out."""
        self._asked, self._said = array("q"), array("q")
        self._lines, self._prompts = set[int](), set[int]()

    def read(self) -> None:
        """Fills the report."""
        report = self.report
        for name in report.sources:
            try:
                for line in sources.scan(self._config, name, field=f"data.{self._kind}"):
                    report.lines += 1
                    self._take(line)
            except InvalidInput as error:
                report.broken += 1
                self._tell(error)
        report.prompt = _spread([length for length in self._asked if length])
        report.answer = _spread(self._said) if self._kind != "prompts" else None
        report.on_both_sides = sum(key in self.trained for key in self.held)
        if report.limit is not None:
            self._fit(report.limit)

    def _take(self, line: Line | DataError) -> None:
        found = sources.attempt(line, self._parse)
        try:
            if isinstance(found, DataError):
                raise found
            lengths = list(measure(found.record, self._ruler))
        except InvalidInput as error:
            self.report.bad += 1
            self.report.alike += error.got == ALIKE
            self._tell(error)
            return
        for asked, said in lengths:
            self._asked.append(asked)
            self._said.append(said)
        self._count(found)

    def _tell(self, error: InvalidInput) -> None:
        if len(self.report.errors) < self._max_errors:
            self.report.errors.append(str(error))

    def _count(self, found: Found) -> None:
        record, report = found.record, self.report
        report.formats[found.format] = report.formats.get(found.format, 0) + 1
        heldout = is_heldout(self._config, found.split_key)
        report.heldout += heldout
        report.train += not heldout
        near = hash(" ".join(found.split_key.casefold().split()))
        if heldout:
            self.held.append(near)
        else:
            self.trained.add(near)
        report.duplicates += _seen(self._lines, record)
        prompt = _prompt_of(record)
        report.repeated_prompts += bool(prompt) and _seen(self._prompts, prompt)
        if isinstance(record, RankedResponses):
            report.ties += record.num_ties
            report.all_tied += not record.pairs
            report.empty_answers += sum(not text.strip() for text in record.texts)
        elif isinstance(record, Preference):
            report.empty_answers += sum(not text.strip() for text in (record.chosen, record.rejected))
        elif isinstance(record, Demonstration):
            # Only of sentences: a demonstration without an answer is a bad line.
            report.too_short += not record.completion

    def _fit(self, limit: int) -> None:
        """What becomes of too long sequences, by the rules of the stage that reads them."""
        asked, said = np.array(self._asked), np.array(self._said)
        room = self._config.sampling.max_new_tokens if self._kind == "prompts" else said
        # A prompt of a comparison is cut from its left; plain text, without a prompt, goes on elsewhere.
        whole = asked >= limit if self._kind != "preferences" else np.zeros(len(asked), bool)
        self.report.dropped = int(whole.sum())
        self.report.truncated = int((~whole & (asked > 0) & (asked + room > limit)).sum())


def _spread(lengths: Sequence[int]) -> Spread | None:
    if not lengths:
        return None
    median, p90, p99 = (float(value) for value in np.quantile(lengths, [0.5, 0.9, 0.99]))
    return Spread(median, p90, p99, max(lengths))


def _seen(known: set[int], what: object) -> bool:
    key = hash(what)
    if key in known:
        return True
    known.add(key)
    return False


def _prompt_of(record: Record) -> object:
    if isinstance(record, str | Chat | PlainText):
        return None  # the whole line is the prompt
    return record.messages[:-1] if isinstance(record, Conversation) else record.prompt
