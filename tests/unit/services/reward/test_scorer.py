"""The reward scorer: a score depends on its own sequence only; errors name every bad input and model."""

from __future__ import annotations

import json
import random

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    RobertaConfig,
)

from fairlead.config.serving import BatchingSection, RewardSection
from fairlead.errors import ConfigError, InternalError, InvalidInput, ModelLoadError
from fairlead.nn import ensemble
from fairlead.nn.reward_model import RewardModel, load_reward_model
from fairlead.types import Message, TextPair, TokenPair, WholeText
from services.reward.scorer import RewardScorer
from tests import architectures
from tests.tiny import tiny_causal_lm, tiny_reward_model, tiny_tokenizer

SECTION = RewardSection(device="cpu", batching=BatchingSection(max_items=8), max_text_bytes=100)


@pytest.fixture(scope="module")
def scorer(reward_folder):
    return RewardScorer(str(reward_folder), SECTION)


@pytest.fixture(scope="module")
def sequences():
    rng = random.Random(3)
    return [
        tuple(rng.randrange(60) for _ in range(length)) for length in [1, 2, 3, 5, 8, 13, 40, 90, 128] * 3
    ]


def float64_scores(folder, sequences):
    """One sequence at a time, no padding, no mask."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    bias = model.config.fairlead_reward_bias
    with torch.inference_mode():
        hidden = [model.model(input_ids=torch.tensor([sequence]))[0][0, -1] for sequence in sequences]
        return [float(row @ model.score.weight[0]) + bias for row in hidden]


@pytest.fixture(scope="module")
def oracle(reward_folder, sequences):
    return float64_scores(reward_folder, sequences)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert abs(one - other) <= 1e-5 * max(1.0, abs(other))


@pytest.mark.parametrize("seed", range(12))
def test_scores_do_not_depend_on_batch_or_order(scorer, sequences, oracle, seed):
    rng = random.Random(seed)
    order = list(range(len(sequences)))
    rng.shuffle(order)
    found: dict[int, float] = {}
    while order:
        size = rng.randint(1, len(order))
        batch, order = order[:size], order[size:]
        found.update(zip(batch, scorer.score([sequences[index] for index in batch]), strict=True))
    assert_same([found[index] for index in range(len(sequences))], oracle)


def test_scores_are_equal_one_at_a_time_and_in_one_batch(scorer, sequences, oracle):
    assert_same([scorer.score([sequence])[0] for sequence in sequences], oracle)
    assert_same(scorer.score(sequences), oracle)
    assert len({round(score, 3) for score in oracle}) > 20, "equal scores would prove nothing"


def test_pooling_does_not_search_for_the_pad_token(tmp_path, sequences):
    """With pad = eos, transformers' own pooling reads the wrong position of a response that ends in EOS."""
    folder = tiny_reward_model(tmp_path, pad_is_eos=True)
    ends = [(*sequence[:20], 2, 2) for sequence in sequences[3:9]]
    expected = float64_scores(folder, ends)
    assert_same(RewardScorer(str(folder), SECTION).score(ends), expected)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        theirs = float(model(input_ids=torch.tensor([ends[0]])).logits[0, 0]) + 0.25
    assert abs(theirs - expected[0]) > 0.01, "the case must make a difference"


def test_text_is_encoded_with_special_tokens_and_eos(scorer, reward_folder):
    tokenizer = tiny_tokenizer()
    prompt, response = tokenizer.convert_tokens_to_ids(["w1", "w2"]), tokenizer.convert_tokens_to_ids(["w7"])
    assert scorer.encode([TextPair("w1 w2", "w7")]) == [(1, *prompt, *response, 2)]
    no_eos = RewardScorer(str(reward_folder), RewardSection(device="cpu", append_eos=False))
    assert no_eos.encode([TextPair("w1 w2", "w7")]) == [(1, *prompt, *response)]
    assert scorer.encode([TextPair("w1 w2", "")]) == [(1, *prompt, 2)], (
        "an empty response is scored at its EOS"
    )
    with pytest.raises(InvalidInput, match=r"items.text.response\[0\]: got 'an empty text'"):
        no_eos.encode([TextPair("w1 w2", "")])
    assert scorer.encode([TokenPair((5,), (6, 7)), TokenPair((), (6,))]) == [(5, 6, 7), (6,)]


def test_whole_text_is_read_without_template(scorer, reward_folder):
    """Special tokens that the text contains are not added again."""
    plain, written, line = scorer.encode(
        [WholeText("w1 w2 w3"), WholeText("<s> w1 w2 w3 </s>"), WholeText("w1 w2 w3 </s>\n")]
    )
    pair = scorer.encode([TextPair("w1", "w2 w3")])[0]
    assert plain == written == line == pair == (1, 5, 6, 7, 2)
    padded = ["<pad><pad><s> w1 w2 w3 </s>", "w1 w2 w3 </s><pad><pad>", "</s> <pad> w1 w2 w3 </s> <pad> </s>"]
    assert scorer.encode([WholeText(text) for text in padded]) == [pair] * 3
    bare = RewardScorer(str(reward_folder), SECTION.model_copy(update={"append_eos": False}))
    assert bare.encode([WholeText("w1"), WholeText("")]) == [(1, 5), (1,)]
    assert bare.encode([WholeText("<pad> w1 </s> <pad>")]) == [(1, 5, 2)]
    with pytest.raises(InvalidInput, match=r"items.whole_text\[1\]: got '101 bytes', allowed: at most 100"):
        scorer.encode([WholeText("w1"), WholeText("x" * 101)])


def test_special_tokens_in_prompts_and_responses_are_unknown_words(scorer):
    """A word tokenizer has them in its vocabulary; only a whole text may use BOS and EOS."""
    honest, ended, padded = scorer.encode(
        [TextPair("w1", "w2"), TextPair("w1 </s>", "w2 </s>"), TextPair("<pad> w1", "w2 <pad> <s>")]
    )
    assert honest == (1, 5, 6, 2)
    assert ended == (1, 5, 3, 3, 6, 3, 3, 2)
    assert padded == (1, 3, 3, 5, 6, 3, 3, 3, 3, 2)
    assert scorer.encode([WholeText("w1 <pad> w2")]) == [(1, 5, 3, 3, 6, 2)]


def foreign(folder):
    """A reward model like those on the hub: without Fairlead's bias, with a chat template."""
    architectures.reward_model("llama", folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings["fairlead_reward_bias"]
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_hub_model_reads_the_whole_template_and_one_bos(tmp_path):
    tokenizer = architectures.tokenizer_of("llama")

    def ids(text):
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    turn = "<|begin|><|start|>user\n\nwhere ?<|eot|><|start|>assistant\n\nhere .<|eot|>"
    system = turn.replace("<|begin|>", "<|begin|><|start|>system\n\nbe kind<|eot|>")
    asked = (Message("system", "be kind"), Message("user", "where ?"))
    scorer = RewardScorer(str(foreign(tmp_path)), SECTION)
    plain, said = scorer.encode([TextPair("where ?", "here ."), TextPair("not read", "here .", asked)])
    assert plain == ids(turn), "a plain prompt is a user's turn"
    assert said == ids(system)
    assert plain.count(tokenizer.bos_token_id) == 1
    assert ids("<|eot|>")[0] == tokenizer.eos_token_id
    never = RewardScorer(str(tmp_path), SECTION.model_copy(update={"chat_template": "never"}))
    assert never.encode([TextPair("where ?", "here .")]) == [ids("<|begin|>where ?here .<|eot|>")]


def test_own_model_reads_the_form_it_was_trained_on(tmp_path):
    """Responses end with EOS; conversations use the template; plain prompts do so only if configured."""
    tokenizer = architectures.tokenizer_of("qwen3")
    path = str(architectures.reward_model("qwen3", tmp_path))
    pair = TextPair("where ?", "here .", (Message("user", "where ?"),))
    scorer = RewardScorer(path, SECTION)
    turned, plain = scorer.encode([pair, TextPair("where ?", "here .")])
    assert tokenizer.decode(turned) == (
        "<|im_start|>user\nwhere ?<|im_end|>\n<|im_start|>assistant\nhere .<|im_end|>"
    )
    assert tokenizer.decode(plain) == "where ?here .<|im_end|>"
    always = RewardScorer(path, SECTION.model_copy(update={"chat_template": "always"}))
    assert always.encode([TextPair("where ?", "here .")]) == [turned]


SMALL = {"vocab_size": 60, "num_labels": 1, "pad_token_id": 0}
ENCODERS = {
    "distilbert": DistilBertConfig(dim=16, hidden_dim=32, n_layers=1, n_heads=2, **SMALL),
    "roberta": RobertaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        type_vocab_size=1,
        **SMALL,
    ),
    "deberta": DebertaV2Config(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pooler_hidden_size=16,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        **SMALL,
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_scores_text_pairs_like_transformers(tmp_path, name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_config(ENCODERS[name]).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save_pretrained(tmp_path)
    scorer = RewardScorer(str(tmp_path), SECTION)
    pairs = [
        TextPair("w1 w2", "w3"),
        TextPair("w4", "w5 w6 w7 w8 w9"),
        TextPair("", "w6", (Message("user", "w9"),)),
    ]
    sequences = scorer.encode(pairs)
    expected = []
    for prompt, response in (("w1 w2", "w3"), ("w4", "w5 w6 w7 w8 w9"), ("w9", "w6")):
        inputs = tokenizer(prompt, response, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            expected.append(float(model(**inputs).logits[0, 0]))
    assert scorer.score(sequences) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in expected}) == 3
    with pytest.raises(
        InvalidInput, match=r"items.tokens\[0\]: got 'ids', allowed: text: the model is an encoder"
    ):
        scorer.encode([TokenPair((1,), (2,))])


def test_missing_chat_template_is_refused_if_required(reward_folder):
    section = SECTION.model_copy(update={"chat_template": "always"})
    with pytest.raises(ConfigError, match=r"reward.chat_template: got 'always'.*has no chat template"):
        RewardScorer(str(reward_folder), section)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "items: got 0, allowed: from 1 to 8"),
        ([TextPair("a", "b")] * 9, "items: got 9, allowed: from 1 to 8"),
        (
            [TextPair("w1", "w2"), TextPair("", "w1", (Message("judge", "w3"),))],
            "items.text.messages[1]: got \"role 'judge'\", allowed: one of system, user, assistant",
        ),
        (
            [TextPair("", "w1", (Message("user", "w3"),))],
            "items.text.messages[0]: got '`messages`, and the tokenizer has no chat template', "
            "allowed: a model whose tokenizer has one, or plain text",
        ),
        (
            [TextPair("", "w1", (Message("user", "é" * 30), Message("user", "é" * 30)))],
            "items.text.messages[0]: got '120 bytes', allowed: at most 100 bytes of UTF-8",
        ),
        (
            [TokenPair((1,), ())],
            "items.tokens.response_token_ids[0]: got 'no token ids', allowed: at least one",
        ),
        (
            [TokenPair((1,), (2,)), TokenPair((1, 60), (2,))],
            "items.tokens.prompt_token_ids[1]: got '60 at position 1', allowed: ids from 0 to 59",
        ),
        (
            [TokenPair((1,), (2, 3, -1))],
            "items.tokens.response_token_ids[0]: got '-1 at position 2', allowed: ids from 0 to 59",
        ),
        (
            [TokenPair((1,), (2,) * 128)],
            "items.tokens[0]: got '129 tokens', allowed: at most 128 tokens, prompt and response together",
        ),
        (
            [TextPair("w1", "é" * 51)],
            "items.text.response[0]: got '102 bytes', allowed: at most 100 bytes of UTF-8",
        ),
        (
            [TextPair("x" * 5_000_000, "w1")],
            "items.text.prompt[0]: got '5000000 bytes', allowed: at most 100 bytes of UTF-8",
        ),
    ],
)
def test_invalid_items_are_refused(scorer, items, message):
    with pytest.raises(InvalidInput) as refused:
        scorer.encode(items)
    assert str(refused.value) == message


def test_info_describes_the_model(scorer, reward_folder):
    model = scorer.info.model
    assert (model.model_id, model.vocabulary_size, model.max_sequence_tokens) == (str(reward_folder), 60, 128)
    assert len(model.tokenizer_fingerprint) == 64
    again = RewardScorer(str(reward_folder), RewardSection(device="cpu", max_sequence_tokens=50))
    assert again.info.model_version == scorer.info.model_version
    assert again.info.model.max_sequence_tokens == 50


def test_version_differs_for_different_weights(tmp_path, scorer):
    other = RewardScorer(str(tiny_reward_model(tmp_path, seed=1)), SECTION)
    assert other.info.model_version != scorer.info.model_version


def test_language_model_without_head_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"lacks the weights score.weight.*without a reward head"):
        RewardScorer(str(tiny_causal_lm(tmp_path)), SECTION)


def test_several_labels_are_refused(tmp_path):
    tiny_reward_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "A", "1": "B"}
    config["label2id"] = {"A": 0, "B": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError):
        RewardScorer(str(tmp_path), SECTION)


def test_truncated_checkpoint_is_refused(tmp_path):
    weights = tiny_reward_model(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        RewardScorer(str(tmp_path), SECTION)


def test_missing_folder_is_named():
    with pytest.raises(ModelLoadError, match="no model folder './nowhere'"):
        RewardScorer("./nowhere", SECTION)


def test_nan_score_fails_only_its_own_sequence(tmp_path, monkeypatch):
    """Files with NaN are refused, so the weights are damaged after they were loaded."""

    def damaged(*args: object, **kwargs: object) -> RewardModel:
        found = load_reward_model(*args, **kwargs)  # type: ignore[arg-type]
        found.body.get_input_embeddings().weight.data[50] = float("nan")
        return found

    monkeypatch.setattr(ensemble, "load_reward_model", damaged)
    scorer = RewardScorer(str(tiny_reward_model(tmp_path)), SECTION)
    bad, good = scorer.score([(5, 50), (5, 6)])
    assert isinstance(bad, InternalError)
    assert "nan" in str(bad)
    assert isinstance(good, float)
