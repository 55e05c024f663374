"""Conversations in every format: the record of a line, and the ids that a chat template produces."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from fairlead.config import RunConfig, load
from fairlead.config.sampling import SamplingSection
from fairlead.data.chat import Chat, prompt
from fairlead.data.comparisons import Preference, RankedResponses, comparisons
from fairlead.data.demonstrations import Conversation, Demonstration, example
from fairlead.data.encoding import encode_answer, encode_prompt
from fairlead.data.lines import Line
from fairlead.data.records import is_heldout, load_demonstrations, load_preferences, load_prompts
from fairlead.data.scorable import scorable
from fairlead.errors import DataError, InvalidInput
from fairlead.types import Message, WeightVersion
from tests.tiny import tiny_tokenizer
from trainer import rankings as reward_data
from trainer.ppo.dispatch import PromptOrder
from trainer.ppo.evaluate import Evaluation

# Writes BOS itself, like the templates of Llama, and a token after every end.
TEMPLATE = (
    "<s> {% for m in messages %}{% if m.role == 'user' %}w1 {{ m.content }} {% elif m.role == 'system' %}"
    "{% if not loop.first %}{{ raise_exception('system speaks first') }}{% endif %}w3 {{ m.content }} "
    "{% else %}w2 {{ m.content }} </s> w4 {% endif %}{% endfor %}{% if add_generation_prompt %}w2 {% endif %}"
)


def chat_tokenizer(template: str | None = TEMPLATE):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def ids(text: str) -> list[int]:
    return tiny_tokenizer().convert_tokens_to_ids(text.split())


def said(*turns: str) -> list[dict[str, str]]:
    """`user: hello` …"""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def messages(*turns: str) -> tuple[Message, ...]:
    return tuple(Message(**turn) for turn in said(*turns))


def run(folder: Path, kind: str, *rows: object, **data: object) -> RunConfig:
    (folder / kind).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load(
        overrides={
            "base": str(folder),
            f"data.{kind}": kind,
            **{f"data.{key}": value for key, value in data.items()},
        }
    )


def asked(config: RunConfig) -> str:
    """A question on the side of training."""
    return next(f"w{n}" for n in range(5, 50) if not is_heldout(config, f"w{n}"))


QUESTION = asked(load())
SHARED = Chat(messages(f"user: {QUESTION}"))
PAIR = Preference(SHARED, "w6", "w7")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {
                "prompt": said(f"user: {QUESTION}"),
                "chosen": said("assistant: w6"),
                "rejected": said("assistant: w7"),
            },
            PAIR,
        ),
        (
            {"prompt": QUESTION, "chosen": said("assistant: w6"), "rejected": said("assistant: w7")},
            PAIR,
        ),
        (
            {
                "chosen": said(f"user: {QUESTION}", "assistant: w6"),
                "rejected": said(f"user: {QUESTION}", "assistant: w7"),
            },
            PAIR,
        ),
        (
            # The prompt once more as text, as in UltraFeedback.
            {
                "prompt": QUESTION,
                "chosen": said(f"user: {QUESTION}", "assistant: w6"),
                "rejected": said(f"user: {QUESTION}", "assistant: w7"),
            },
            PAIR,
        ),
        ({"prompt": said(f"user: {QUESTION}"), "chosen": "w6", "rejected": "w7"}, PAIR),
        (
            {"prompt": said(f"user: {QUESTION}"), "chosen": "", "rejected": "w7"},
            Preference(SHARED, "", "w7"),
        ),
        (
            {"chosen": f"{QUESTION} w5 w6 w7", "rejected": f"{QUESTION} w5 w8"},
            Preference(f"{QUESTION} w5", " w6 w7", " w8"),
        ),
        (
            # `w6` is a beginning of `w60`: no word is cut in two.
            {"chosen": f"{QUESTION} w6", "rejected": f"{QUESTION} w60"},
            Preference(QUESTION, " w6", " w60"),
        ),
        (
            {
                "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: I think yes",
                "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: I think no",
            },
            Preference(f"\n\nHuman: {QUESTION}\n\nAssistant:", " I think yes", " I think no"),
        ),
        (
            {
                "prompt": said(f"user: {QUESTION}"),
                "responses": [{"text": "w6", "rank": 1}, {"text": "w7", "rank": 2}],
            },
            RankedResponses(SHARED, ("w6", "w7"), (-1.0, -2.0)),
        ),
    ],
)
def test_reads_every_preference_format(tmp_path, row, expected):
    split = load_preferences(run(tmp_path, "preferences", row, row, heldout_fraction=1e-9))
    assert split.train == (expected, expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": said("assistant: a"), "rejected": said("assistant: b")},
            "without a common prompt",
        ),
        (
            {
                "chosen": said("user: a", "assistant: b", "user: c", "assistant: d"),
                "rejected": said("user: a", "assistant: x", "user: c", "assistant: d"),
            },
            "without a common prompt",
        ),
        (
            {"chosen": said("user: a", "assistant: b"), "rejected": said("user: a", "user: b")},
            "`rejected` that does not end with an assistant message",
        ),
        (
            {
                "chosen": said("user: a", "assistant: b", "assistant: c"),
                "rejected": said("user: a", "assistant: b", "assistant: d"),
            },
            "without a common prompt",
        ),
        ({"chosen": said("user: a", "assistant: b"), "rejected": "b"}, "`chosen` of type array"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "`prompt` without a message"),
        (
            {"prompt": said("user: a", "assistant: b"), "chosen": "a", "rejected": "b"},
            "`prompt` that ends with an assistant message",
        ),
        ({"prompt": said("tool: a"), "chosen": "a", "rejected": "b"}, "`prompt[0].role` = 'tool'"),
        (
            {"chosen": said("user: a", "assistant: b"), "rejected": said("user: a", "assistant: b")},
            "identical `chosen` and `rejected`",
        ),
        ({"chosen": "a"}, "the keys chosen"),
    ],
)
def test_invalid_preference_names_the_mistake(tmp_path, row, message):
    with pytest.raises(DataError) as caught:
        load_preferences(run(tmp_path, "preferences", row))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'preferences'}:1: got ")


def test_completion_messages_are_learnt_and_prompt_messages_are_context(tmp_path):
    turns = said("system: w9", "user: w10", "assistant: w11", "user: w12")
    rows = [
        {"prompt": turns, "completion": said("assistant: w13")},
        {"prompt": turns, "completion": "w13"},
        {"prompt": "w10", "completion": said("assistant: w13", "user: w14", "assistant: w15")},
        {"prompt": "", "completion": said("user: w10", "assistant: w13")},
        {"prompt": "w10", "completion": "w13"},
    ]
    found = load_demonstrations(run(tmp_path, "demonstrations", *rows, heldout_fraction=1e-9)).train
    before = messages("system: w9", "user: w10", "assistant: w11", "user: w12")
    answer = messages("assistant: w13")
    long = messages("user: w10", "assistant: w13", "user: w14", "assistant: w15")
    assert found[0] == found[1] == Conversation((*before, *answer), context=4)
    assert found[2] == Conversation(long, context=1)
    assert found[3] == Conversation(messages("user: w10", "assistant: w13"))
    assert found[4] == Demonstration("w10", "w13")
    assert list(found[0].turns) == [(Chat(before), "w13")]
    assert [answer for _, answer in found[2].turns] == ["w13", "w15"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "w5"}, "w5"),
        ({"prompt": said("user: w5")}, Chat(messages("user: w5"))),
        ({"messages": said("user: w5")}, Chat(messages("user: w5"))),
        ({"messages": said("user: w5", "assistant: w6")}, Chat(messages("user: w5"))),
        (
            {"messages": said("user: w5", "assistant: w6", "user: w7")},
            Chat(messages("user: w5", "assistant: w6", "user: w7")),
        ),
        ({"prompt": "w5", "messages": None}, "w5"),
        ({"prompt": None, "messages": said("user: w5")}, Chat(messages("user: w5"))),
        ({"prompt": said("user: w5"), "completion": "w6"}, Chat(messages("user: w5"))),
    ],
)
def test_reads_every_prompt_format(tmp_path, row, expected):
    assert load_prompts(run(tmp_path, "prompts", row, heldout_fraction=1e-9)).train == (expected,)


@pytest.mark.parametrize(
    "turns", [[], said("assistant: w5"), said("user: a", "assistant: b", "assistant: c")]
)
def test_rejects_messages_without_a_message_to_answer(tmp_path, turns):
    with pytest.raises(DataError, match="`messages` without a message to answer"):
        load_prompts(run(tmp_path, "prompts", {"messages": turns}))


def test_text_and_messages_of_one_question_share_a_split_side(tmp_path):
    questions = [f"question {number}" for number in range(200)]
    turns = [said("system: be brief", f"user: {text}", "assistant: yes", "user: why?") for text in questions]
    plain = run(tmp_path, "prompts", *({"prompt": text} for text in questions), heldout_fraction=0.3)
    expected = load_prompts(plain)
    spoken = load_prompts(run(tmp_path, "prompts", *({"prompt": t} for t in turns), heldout_fraction=0.3))
    assert 30 < len(expected.heldout) < 90
    for side in ("train", "heldout"):
        assert tuple(chat.messages[1].content for chat in getattr(spoken, side)) == getattr(expected, side)
    pairs = [{"prompt": t, "chosen": "a", "rejected": "b"} for t in turns]
    compared = load_preferences(run(tmp_path, "preferences", *pairs, heldout_fraction=0.3))
    assert tuple(pair.prompt for pair in compared.heldout) == spoken.heldout


def test_answers_to_an_empty_prompt_are_split_by_answer(tmp_path):
    rows = [{"prompt": "", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(200)]
    split = load_preferences(run(tmp_path, "preferences", *rows, heldout_fraction=0.3))
    assert 30 < len(split.heldout) < 90


def test_template_special_tokens_are_not_doubled():
    tokenizer = chat_tokenizer()
    prompt = Chat(messages("system: w9", "user: w10"))
    assert encode_prompt(tokenizer, prompt) == ids("<s> w3 w9 w1 w10 w2")
    assert encode_answer(tokenizer, prompt, "w11 w12") == (ids("<s> w3 w9 w1 w10 w2"), ids("w11 w12 </s>"))
    assert encode_prompt(tokenizer, "w10") == ids("<s> w10")


def test_comparison_ids_equal_policy_ids(tmp_path):
    split = load_preferences(
        run(
            tmp_path,
            "preferences",
            {"prompt": said("user: w10"), "chosen": "w6", "rejected": "w7 w8"},
            heldout_fraction=1e-9,
        )
    )
    (ranking,) = reward_data.encode(split.train, chat_tokenizer(), max_tokens=64).rankings
    assert ranking.sequences == (
        tuple(ids("<s> w1 w10 w2 w6 </s>")),
        tuple(ids("<s> w1 w10 w2 w7 w8 </s>")),
    )
    assert ranking.pairs == ((0, 1),)
    assert ranking.texts == ("w6", "w7 w8")


def test_conversation_task_has_ids_messages_and_text(tmp_path):
    prompts = load_prompts(
        run(tmp_path, "prompts", {"prompt": said("system: w9", "user: w10")}, heldout_fraction=1e-9)
    ).train
    order = PromptOrder(prompts, chat_tokenizer(), sampling=SamplingSection(), seed=0)
    task = order.task(0, min_version=WeightVersion(1, 0))
    assert list(task.prompt_token_ids) == ids("<s> w3 w9 w1 w10 w2")
    assert task.messages == messages("system: w9", "user: w10")
    assert task.prompt_text == "system: w9\nuser: w10"


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (TEMPLATE, said("user: w5", "system: w6", "user: w7"), "rejects: system speaks first"),
        (None, said("user: w5"), "the tokenizer has no chat template"),
        ("{{ messages | no_such_filter }}", said("user: w5"), "rejects: No filter named 'no_such_filter'"),
        ("{{ messages[0].content.nothing.more }}", said("user: w5"), "rejects: "),
    ],
)
def test_template_rejection_names_file_and_line(tmp_path, template, turns, message):
    config = run(
        tmp_path, "prompts", {"prompt": "w5"}, {"prompt": turns}, {"prompt": "w6"}, heldout_fraction=1e-9
    )
    with pytest.raises(DataError) as caught:
        PromptOrder(load_prompts(config).train, chat_tokenizer(template), sampling=SamplingSection(), seed=0)
    assert str(caught.value).startswith(f"{tmp_path / 'prompts'}:2: got ")
    assert message in str(caught.value)


def test_unrenderable_heldout_prompts_stop_the_trainer_early(tmp_path):
    rows = [{"prompt": said(f"user: w{n}")} for n in range(40)]
    prompts = run(tmp_path, "prompts", *rows, heldout_fraction=0.5)
    config = prompts.model_copy(
        update={"evaluation": prompts.evaluation.model_copy(update={"every_updates": 1})}
    )
    Evaluation(config, chat_tokenizer()).close()
    with pytest.raises(DataError, match=f"^{tmp_path / 'prompts'}:[0-9]+: .*no chat template"):
        Evaluation(config, chat_tokenizer(None))


def test_messages_without_a_file_are_rejected_as_invalid_input():
    with pytest.raises(InvalidInput, match="^messages: got .*system speaks first") as caught:
        encode_prompt(chat_tokenizer(), Chat(messages("user: w5", "system: w6")))
    assert not isinstance(caught.value, DataError)


@pytest.mark.parametrize(
    ("extra", "within"),
    [
        ({"reasoning_content": "17*24=408"}, True),
        ({"reasoning": "x"}, True),
        ({"thinking": "x"}, True),
        ({"tool_calls": [{"id": "1"}]}, True),
        ({"function_call": {"name": "f"}}, True),
        ({"tools": [{"type": "function"}]}, False),
        ({"functions": [{"name": "f"}]}, False),
    ],
)
def test_text_that_is_not_read_is_refused_by_name(extra, within):
    (key,) = extra
    turns = said("user: w5", "assistant: w6")
    for value, refused in ((extra[key], True), (None, False), (type(extra[key])(), False)):
        added = {key: value}
        row = {"messages": [turns[0], turns[1] | added]} if within else {"messages": turns, **added}
        line = Line("a.jsonl", 3, row)
        if refused:
            with pytest.raises(
                DataError, match=f"^a.jsonl:3: got '`(messages.1..)?{key}`, which is not read"
            ):
                example(line)
        else:
            example(line)


def test_unread_text_is_refused_in_lines_of_plain_text_and_in_rankings_too():
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    compare = partial(comparisons, tie_margin=0.0)
    plain = [
        (example, {"prompt": "p", "completion": "c"}),
        (prompt, {"prompt": "p"}),
        (compare, pair),
        (scorable, {"prompt": "p", "response": "r"}),
    ]
    for parse, row in plain:
        for key in ("tools", "functions"):
            with pytest.raises(DataError, match=f"got '`{key}`, which is not read'"):
                parse(Line("a.jsonl", 1, row | {key: [{"name": "f"}]}))
            for nothing in (None, [], "", "[]"):
                parse(Line("a.jsonl", 1, row | {key: nothing}))
    ranked = [{"text": "a", "rank": 1}, {"text": "b", "rank": 2, "reasoning_content": "why"}]
    with pytest.raises(DataError, match=r"got '`responses\[1\].reasoning_content`, which is not read'"):
        compare(Line("a.jsonl", 1, {"prompt": "p", "responses": ranked}))


def test_prompt_that_whole_conversations_do_not_begin_with_is_refused():
    compare = partial(comparisons, tie_margin=0.0)
    whole = {"chosen": said("user: q", "assistant: a"), "rejected": said("user: q", "assistant: b")}
    assert compare(Line("a.jsonl", 1, whole | {"prompt": said("user: q")})).chosen == "a"
    with pytest.raises(DataError, match="got '`prompt` that is not the beginning of `chosen`'"):
        compare(Line("a.jsonl", 1, whole | {"prompt": said("system: s")}))


def test_responses_to_score_are_named_by_their_place():
    for responses, message in (
        (["a", None], r"`responses\[1\]` of type null"),
        (["a", {"text": "b"}], r"`responses\[1\]` of type object"),
        (["a", "\ud800"], r"`responses\[1\]` with an unpaired surrogate"),
    ):
        with pytest.raises(DataError, match=message):
            scorable(Line("a.jsonl", 1, {"prompt": "p", "responses": responses}))
    ranked = [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]
    both = {"prompt": "p", "responses": ranked, "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match="got 'the keys prompt, responses, chosen, rejected'"):
        scorable(Line("a.jsonl", 1, both))


def test_assistant_messages_of_weight_0_are_not_learnt():
    turns = said("user: w5", "assistant: bad", "user: w6", "assistant: good")
    turns[1]["weight"] = 0
    turns[3]["weight"] = 1
    found = list(example(Line("a.jsonl", 1, {"messages": turns})).turns)
    assert [answer for _, answer in found] == ["good"]
    assert len(found[0][0].messages) == 3
    turns[3]["weight"] = 0
    with pytest.raises(DataError, match="weight 0 only"):
        example(Line("a.jsonl", 1, {"messages": turns}))
    turns[3]["weight"] = 0.5
    with pytest.raises(DataError, match=r"got '`messages\[3\].weight` = 0.5'"):
        example(Line("a.jsonl", 1, {"messages": turns}))
