"""The preference stage with a tiny model: learning, its reference, resumption to the bit, bad data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from fairlead.config import RunConfig
from fairlead.config.base import ComputeSection
from fairlead.errors import ConfigError, DataError
from fairlead.nn.loading import load_causal_lm, load_tokenizer
from tests.tiny import tiny_causal_lm
from tests.unit.trainer.stage_world import preference_run
from tests.unit.trainer.test_stage_checkpoint import (
    comparable,
    digests,
    interrupted,
    stops_on_sigterm,  # noqa: F401 - a fixture
)
from trainer.distributed.group import Group
from trainer.preference.reference import ReferenceCache
from trainer.preference.train import train
from trainer.sequences import TokenSequence
from trainer.stage_checkpoint import root


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny_causal_lm(tmp_path_factory.mktemp("base")))


def write_thumbs(config: RunConfig, lines: list[dict]) -> RunConfig:
    (config.base / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = config.data.model_copy(update={"preferences": "", "thumbs": "t.jsonl"})
    return config.model_copy(update={"data": data})


THUMBS = [
    {"prompt": f"w{n % 20}", "completion": f"w{40 + n % 3} w{50 + n % 2}", "label": n % 2 == 0}
    for n in range(60)
]


def test_stage_learns_rankings_and_writes_a_policy(tmp_path: Path, base: str):
    config = preference_run(tmp_path, path=base, rankings="plackett_luce")
    result = train(config)
    assert result["accuracy"] > 0.9
    low, high = result["accuracy_interval_by_prompt"]
    assert low <= result["accuracy"] <= high
    assert result["margin"] > 0
    assert result["chosen_change"] > result["rejected_change"]
    assert result["ties"] == 20
    lines = [json.loads(line) for line in config.folder.metrics("preference").read_text().splitlines()]
    assert {"accuracy", "margin", "chosen_change", "rejected_change", "gradient_norm"} <= lines[0].keys()
    assert [line["epoch"] for line in lines if "heldout_accuracy" in line] == [1, 2]
    path = str(config.folder.preference_model)
    load_tokenizer(path)
    assert load_causal_lm(path, ComputeSection(device="cpu")).num_parameters() == result["trained_parameters"]
    assert not root("preference", config).exists()


def test_kto_learns_thumbs_and_an_adapter_is_compared_with_its_base(tmp_path: Path, base: str, caplog):
    config = write_thumbs(preference_run(tmp_path, path=base, loss="kto", **{"lora.rank": 4}), THUMBS)
    caplog.set_level("INFO")
    result = train(config)
    assert result["accuracy"] > 0.9
    assert result["good"] + result["bad"] == 60
    assert "120 answers computed, 0 read" in caplog.text
    assert (config.folder.preference_model / "adapter_model.safetensors").is_file()
    # A second run with other settings starts from the same reference, and reads it.
    config.folder.result("preference").unlink()
    train(config.model_copy(update={"preference": config.preference.model_copy(update={"beta": 0.3})}))
    assert "0 answers computed, 120 read" in caplog.text


def test_warning_when_preferred_answers_become_less_likely(tmp_path: Path, base: str, caplog):
    config = preference_run(tmp_path, path=base, comparisons=30)
    swapped = [
        {"prompt": f"w{n}", "chosen": f"w{40 + n % 5} w51", "rejected": f"w{40 + n % 7} w50"}
        for n in range(20)
    ]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(line) + "\n" for line in swapped))
    data = config.data.model_copy(update={"heldout_preferences": "h.jsonl"})
    train(config.model_copy(update={"data": data}))
    assert "held-out preferred answers are less likely than under the reference" in caplog.text
    assert "raise preference.sft_coefficient" in caplog.text


def test_interrupted_stage_gives_the_same_bits(tmp_path: Path, base: str, stops_on_sigterm: None):  # noqa: F811
    settings = {
        "comparisons": 30,
        "epochs": 3,
        "threads": 1,
        "path": base,
        "lora.rank": 2,
        "lora.dropout": 0.2,
    }
    whole = preference_run(tmp_path / "whole", **settings)
    train(whole)
    config = preference_run(tmp_path / "cut", **settings)
    times = 0
    while interrupted(train, config, "preference", after=2):
        times += 1
        if times == 2:  # the reference is computed with the initial weights, also by a stage that continues
            [file] = config.folder.reference_logprobs.iterdir()
            file.write_bytes(file.read_bytes()[:-3])
    assert times >= 3
    assert digests(config.folder.preference_model) == digests(whole.folder.preference_model)
    assert comparable(config, "preference") == comparable(whole, "preference")


def test_reference_is_read_only_where_everything_is_the_same(tmp_path: Path, caplog):
    sequences = [TokenSequence((1, 5, number % 7, 2), 2) for number in range(1_500)]
    computed: list[int] = []

    def compute(part):
        computed.append(len(part))
        return torch.arange(len(part), dtype=torch.float64) - 10

    def run(model: str, given=sequences):
        computed.clear()
        cache = ReferenceCache(tmp_path, model=model, group=Group.single())
        found = cache.logprobs(given, compute, doing=lambda what, done, total: None)
        return found, list(computed)

    first, times = run("a")
    assert times == [1_024, 476]
    assert torch.equal(run("a")[0], first)
    assert run("a")[1] == []
    assert run("a", [*sequences, TokenSequence((1, 2), 1)])[1] == [477]
    assert run("b")[1] == [1_024, 476]
    one, two = sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    content = two.read_bytes()
    for damage in (content[:-5], content[:-1] + bytes([content[-1] ^ 1]), b"", content[:9]):
        two.write_bytes(damage)
        assert run("b")[1] == [1_024]
        assert "computed again" in caplog.text
    # One file in the place of another.
    values = load_file(one)
    save_file(values, two, {"made_from": one.stem})
    assert run("b")[1] == [1_024]
    # Of another type, with the digest of what it holds.
    narrow = torch.zeros(1_024)
    digest = blake3(narrow.numpy().tobytes()).hexdigest()
    save_file({"logprobs": narrow}, two, {"made_from": two.stem, "blake3": digest})
    assert run("b")[1] == [1_024]
    assert run("")[1] == [1_024, 476]
    assert run("")[1] == [1_024, 476]


def test_data_without_anything_to_learn_is_refused(tmp_path: Path, base: str):
    config = preference_run(tmp_path, path=base, comparisons=3)
    tied = {"prompt": "w1", "responses": [{"text": "w2", "rank": 1}, {"text": "w3", "rank": 1}]}
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps(tied | {"prompt": f"w{n}"}) + "\n" for n in range(9))
    )
    with pytest.raises(ConfigError, match="no comparisons"):
        train(config)
    kto = preference_run(tmp_path, path=base, comparisons=3, loss="kto")
    with pytest.raises(ConfigError, match="data.thumbs.*some of both"):
        train(write_thumbs(kto, [line | {"label": True} for line in THUMBS]))
    with pytest.raises(DataError, match="t.jsonl:60.*a key `label`"):
        train(write_thumbs(kto, [*THUMBS[:59], {"prompt": "w1", "completion": "w2"}]))
    with pytest.raises(DataError, match="t.jsonl:1: got .*label.*allowed: `label` = true or false"):
        train(write_thumbs(kto, [THUMBS[0] | {"label": "good"}]))
    long = write_thumbs(kto, [line | {"completion": "w1 " * 600} for line in THUMBS])
    with pytest.raises(ConfigError, match="60 of 60 answers leave no space"):
        train(long)
