"""docs/data.md: the loader of each section reads its example lines into the documented records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fairlead.config import RunConfig, load
from fairlead.config.data import DataSection
from fairlead.data import hub
from fairlead.data.chat import Chat
from fairlead.data.comparisons import Preference, RankedResponses
from fairlead.data.demonstrations import Conversation, Demonstration, PlainText
from fairlead.data.kinds import KINDS, detect
from fairlead.data.records import load_demonstrations, load_preferences, load_prompts, load_thumbs
from fairlead.data.sentences import load_parts
from fairlead.data.thumbs import Thumb
from fairlead.types import Message

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```json (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
RAIN = Chat((Message("user", "Is it raining?"),))
LAMP = "my lamp arrived broken ."
EXPECTED = {
    "demonstrations": [
        Demonstration(LAMP, "i am sorry . a new one is on its way ."),
        Conversation((*RAIN.messages, Message("assistant", "Not here.")), context=1),
        Conversation((Message("system", "Be brief."), *RAIN.messages, Message("assistant", "No."))),
        PlainText("A fairlead guides a line in the direction wanted and keeps it from chafing."),
        Conversation(
            (Message("user", "Translate to German.\nIs it raining?"), Message("assistant", "Regnet es?"))
        ),
        Conversation((*RAIN.messages, Message("assistant", "No."))),
    ],
    "preferences": [
        Preference(LAMP, "i am sorry . a new one is on its way .", "no ."),
        Preference(RAIN, "Not here.", "Maybe."),
        Preference(RAIN, "Not here.", "Maybe."),
        Preference("\n\nHuman: Is it raining?\n\nAssistant:", " Not here.", " Maybe."),
        RankedResponses(LAMP, ("i am sorry .", "no .", "why ?"), (-1.0, -2.0, -2.0)),
        RankedResponses(RAIN, ("Not here.", "Maybe."), (0.9, 0.2), has_scores=True),
        Preference(LAMP, "i am sorry .", "no .", margin=2.0),
        Preference(RAIN, "Not here.", "Maybe."),
        Preference(RAIN, "Not here.", "Maybe."),
    ],
    "thumbs": [
        Thumb(LAMP, "i am sorry . a new one is on its way .", good=True),
        Thumb(LAMP, "no .", good=False),
        Thumb(RAIN, "Not here.", good=True),
    ],
    "prompts": [LAMP, Chat((Message("system", "Be brief."), *RAIN.messages)), RAIN],
}


def config(folder: Path, **data: str) -> RunConfig:
    named = {f"data.{kind}": name for kind, name in data.items()}
    return load(overrides={"base": str(folder), "data.heldout_fraction": 1e-9, **named})


def test_every_kind_has_examples():
    assert {kind for kind, _ in EXAMPLES} == set(KINDS)
    for kind in KINDS:
        assert f"## {kind.capitalize()}\n" in PAGE
        assert f"| `{kind}` |" in PAGE


@pytest.mark.parametrize("kind", EXPECTED)
def test_example_lines_are_read_as_documented(tmp_path, kind):
    lines = [line for found, text in EXAMPLES if found == kind for line in text.splitlines()]
    (tmp_path / "all").write_text("\n".join(lines), encoding="utf-8")
    loaders = {
        "demonstrations": load_demonstrations,
        "preferences": load_preferences,
        "thumbs": load_thumbs,
        "prompts": load_prompts,
    }
    split = loaders[kind](config(tmp_path, **{kind: "all"}))
    assert list(split.train) == EXPECTED[kind]
    for line in lines:
        (tmp_path / "one").write_text(line, encoding="utf-8")
        assert detect(config(tmp_path), "one") == kind


def test_sentence_example_is_read_as_documented(tmp_path):
    (text,) = (text for kind, text in EXAMPLES if kind == "sentences")
    (tmp_path / "s").write_text(text, encoding="utf-8")
    parts = load_parts(tmp_path / "s", prompt_words=3, seed=0)
    (found,) = (*parts.demonstrations, *parts.preferences, *parts.judge)
    assert (found.prompt, found.label, found.text) == ("a film that", 1, json.loads(text)["text"])


def test_documented_keys_and_options_exist():
    for name in hub.OPTIONS:
        assert f"| `{name}=` |" in PAGE
    for name in re.findall(r"`data\.(\w+)", PAGE):
        assert name in DataSection.model_fields
    toml = re.search(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert toml is not None
    for name in re.findall(r'"(\w+/[^".]+\?[^"]*)"|`([\w./-]+\?[^`]+)`', PAGE):
        hub.parse_name("".join(name), field="page")
