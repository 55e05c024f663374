"""A folder with a dataset card, which `datasets`, the hub and `data.preferences = "folder/?config=rankings"`
read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.errors import InvalidInput
from fairlead.judgments import agreement, length_bias, position_bias
from services.feedback.exports.lines import Values, as_bytes
from services.feedback.exports.rankings import demonstrations, pairs, rankings
from services.feedback.store.judged import Judged, Snapshot

_SEED = 0
"""Of the resampling of intervals, so that the same snapshot has the same figures."""
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
_SPLITS = {"train": "train", "heldout": "test"}
"""Split of each cohort: rankings of held-out people are never trained on."""


@dataclass(frozen=True, slots=True)
class About:
    """What a card says that the log does not know.

    Raises:
        InvalidInput: the licence is not an identifier.
    """

    title: str
    """Name of the data set."""
    license: str
    """Identifier of the licence, as the hub has it, such as `cc-by-4.0`."""
    languages: tuple[str, ...] = ("en",)
    """Codes of the languages."""
    guidelines: str = ""
    """What labelers were asked to do, as Markdown."""
    consent: str = ""
    """By what the authors of prompts and the labelers agreed."""
    withdrawal: str = ""
    """How somebody has their part withdrawn."""

    def __post_init__(self) -> None:
        if not _LICENSE.fullmatch(self.license):
            raise InvalidInput("license", got=self.license, allowed="an identifier such as cc-by-4.0")


def folder(judged: Sequence[Judged], snapshot: Snapshot, about: About) -> dict[str, bytes]:
    """Return the files of the folder by their names: the card, figures, and JSON lines of each configuration.

    Raises:
        InvalidInput: nothing of the snapshot can be written as rankings or demonstrations.
    """
    files: dict[str, bytes] = {}
    configs: dict[str, dict[str, int]] = {}
    for name, lines_of in (("rankings", rankings), ("pairs", pairs), ("demonstrations", demonstrations)):
        for cohort, split in _SPLITS.items():
            lines = _alike(list(lines_of([one for one in judged if one.cohort == cohort])))
            if lines:
                files[f"{name}/{split}.jsonl"] = as_bytes(lines)
                configs.setdefault(name, {})[split] = len(lines)
    if not configs:
        raise InvalidInput("snapshot", got="no rankings and no demonstrations", allowed="some of either")
    figures = figures_of(judged)
    files["figures.json"] = (json.dumps(figures, indent=1, sort_keys=True) + "\n").encode()
    files["README.md"] = _card(about, snapshot, configs, figures).encode("utf-8", "replace")
    return dict(sorted(files.items()))


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder, which must be empty or absent.

    Raises:
        InvalidInput: it has files.
    """
    if out.exists() and any(out.iterdir()):
        raise InvalidInput("out", got=str(out), allowed="a folder without files")
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def figures_of(judged: Sequence[Judged]) -> Values:
    """Return counts, agreement with intervals, and biases of the judgments of a snapshot."""
    ranked = [one.judgment for one in judged if "ranks" in (one.entry.body or {})]
    found: Values = {
        "judgments": len(judged),
        "tasks": len({one.task.id for one in judged}),
        "labelers": len({one.pseudonym for one in judged}),
        "late": sum(one.entry.late for one in judged),
        "by_kind": dict(sorted(Counter(one.task.kind for one in judged).items())),
        "by_reason": dict(sorted(Counter(one.task.why for one in judged).items())),
        "by_labeler_kind": dict(sorted(Counter(one.person_kind for one in judged).items())),
    }
    if ranked:
        found["agreement"] = agreement(ranked, seed=_SEED).as_json()
        found["position_bias"] = position_bias(ranked).as_json()
        found["length_bias"] = length_bias(ranked, seed=_SEED).as_json()
    return found


def _alike(lines: list[Values]) -> list[Values]:
    """Return lines whose prompts are all of one type, as a table needs: texts become messages of the user."""
    if all(isinstance(line["prompt"], str) for line in lines):
        return lines
    return [_as_messages(line) if isinstance(line["prompt"], str) else line for line in lines]


def _as_messages(line: Values) -> Values:
    """Return a line whose texts are messages."""
    answers = {name: line[name] for name in ("chosen", "rejected", "completion") if name in line}
    return (
        line
        | {"prompt": [{"role": "user", "content": line["prompt"]}]}
        | {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    )


def _card(about: About, snapshot: Snapshot, configs: Mapping[str, Mapping[str, int]], figures: Values) -> str:
    header = ["license: " + json.dumps(about.license), f"pretty_name: {json.dumps(about.title)}", "language:"]
    header += [f"- {json.dumps(language)}" for language in about.languages]
    header += ["task_categories:", "- text-generation"]
    header += ["tags:", "- human-feedback", "- rlhf", "- preferences", "configs:"]
    for number, (name, splits) in enumerate(configs.items()):
        header += [f"- config_name: {name}", *(["  default: true"] if number == 0 else []), "  data_files:"]
        header += [f"  - split: {split}\n    path: {name}/{split}.jsonl" for split in splits]
    rows = [
        f"| {name} | {split} | {count} |"
        for name, splits in configs.items()
        for split, count in splits.items()
    ]
    parts = [
        "---\n" + "\n".join(header) + "\n---\n",
        f"# {about.title}\n",
        f"Judgments of people, exported by fairlead. Snapshot `sha256:{snapshot.digest}` of "
        f"{snapshot.entries} entries; the log ended with entry {snapshot.filter.until}, `{snapshot.head}`, "
        "which names all entries before.\n",
        "| configuration | split | lines |\n|---|---|---|\n" + "\n".join(rows) + "\n",
        "`train` has the rankings that may be trained on; `test` those of held-out people, which only "
        "measure.\n",
        "## Figures\n",
        *_figures(figures),
        "## Guidelines\n",
        (about.guidelines or "None were recorded.") + "\n",
        "## Consent\n",
        (about.consent or "Not stated by the operator.") + "\n",
        "## Withdrawal\n",
        (about.withdrawal or "Not stated by the operator.") + "\n",
    ]
    return "\n".join(parts)


def _figures(figures: Values) -> list[str]:
    lines = [
        f"- {figures['judgments']} judgments of {figures['tasks']} tasks by {figures['labelers']} labelers, "
        f"{figures['late']} of them late"
    ]
    found: dict[str, Any] | None = figures.get("agreement")
    if found:
        rate, interval = found["rate"], found["interval"]
        if rate is not None:
            between = f", 95% interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
            lines.append(f"- labelers agree on {rate:.3f} of the pairs that both ordered{between}")
        if found["alpha"] is not None:
            lines.append(f"- Krippendorff's alpha, ordinal: {found['alpha']:.3f}")
        longer = figures["length_bias"]["longer_wins"]
        if longer is not None:
            lines.append(f"- the longer answer wins {longer:.3f} of the pairs")
    return ["\n".join(lines) + "\n"]
