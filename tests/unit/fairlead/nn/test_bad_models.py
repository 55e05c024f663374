"""Unusable models are reported in one clear line before anything is served or trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from fairlead.config import load as load_config
from fairlead.config.base import ComputeSection
from fairlead.config.serving import ReferenceSection, RewardSection
from fairlead.config.training import PpoSection
from fairlead.errors import ModelLoadError
from fairlead.metrics import PolicyMetrics
from fairlead.nn.loading import load_causal_lm, load_tokenizer
from fairlead.nn.reward_model import load_reward_model
from services.policy import __main__ as policy_service
from services.reference.scorer import ReferenceScorer
from services.reward.scorer import RewardScorer
from tests import architectures
from tests.tiny import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from trainer.ppo import actor_critic

CPU = ComputeSection(device="cpu")

_ASK = """
import json, resource, sys
from fairlead.config.base import ComputeSection
from fairlead.errors import ModelLoadError
from fairlead.nn import loading
said = {}
for path in sys.argv[1:]:
    if path.startswith("/"):
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        used = int(status["VmSize"].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), resource.RLIM_INFINITY))
    try:
        loading.load_causal_lm(path, ComputeSection(device="cpu"))
    except ModelLoadError as error:
        said[path] = str(error)
print(json.dumps(said))
"""


class Hub(BaseHTTPRequestHandler):
    """The hub's answers, by the name of the model that is asked for."""

    def do_GET(self) -> None:
        code, status = ("GatedRepo", 403) if "/acme/gated/" in self.path else ("RepoNotFound", 401)
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(folder: Path, *paths: str, **environment: str) -> dict[str, str]:
    """What a process of its own says of models: the hub's settings are read when it starts."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK, *paths],
        env=os.environ | {"HF_HOME": str(folder / "cache"), "HF_TOKEN": ""} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow  # a process of its own, since the hub's client reads its address only once
def test_hub_and_memory_errors_have_clear_messages(hub: str, tmp_path: Path):
    large = tmp_path / "large"
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16_000,
            hidden_size=1_024,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            tie_word_embeddings=True,
        )
    ).save_pretrained(large)
    said = ask(tmp_path, "acme/gated", "acme/absent", str(large), HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert said["acme/gated"] == (
        "the hub model 'acme/gated' is gated: accept its terms at https://huggingface.co/acme/gated, "
        "then log in with `hf auth login` or set HF_TOKEN"
    )
    assert said["acme/absent"] == (
        "'acme/absent' is neither a local folder nor a model on the hub: check the name; if it is private, "
        "log in with `hf auth login` or set HF_TOKEN"
    )
    assert said[str(large)] == (
        f"not enough memory for the model '{large}': `fairlead plan` reports how much a run needs; "
        "dtype = 'bfloat16' needs half"
    )


OUT_OF_REACH = (
    "'acme/some' is neither a local folder nor in the hub's cache, and the hub cannot be reached: "
    "download it on a machine with network access by `hf download acme/some`, or give a folder"
)


def test_missing_network_explains_how_to_download_the_model():
    for load in (lambda: load_causal_lm("acme/some", CPU), lambda: load_tokenizer("acme/some")):
        with pytest.raises(ModelLoadError) as raised:
            load()
        assert str(raised.value) == OUT_OF_REACH


@pytest.mark.slow  # the hub's client tries several times
def test_unreachable_hub_has_the_same_message(tmp_path: Path):
    # Nobody listens on port 9.
    said = ask(tmp_path, "acme/some", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert said == {"acme/some": OUT_OF_REACH}


def with_more_tokens(folder: Path) -> str:
    """The tokenizer learns a word that the model has no row for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["w56", "w57"])
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_vocabulary_smaller_than_the_tokenizer_is_rejected_everywhere(tmp_path: Path):
    policy = with_more_tokens(tiny_causal_lm(tmp_path / "policy"))
    reward = with_more_tokens(tiny_reward_model(tmp_path / "reward"))
    refusal = r"has an embedding of 60 rows, and its tokenizer has ids up to 61: "
    served = load_config(overrides={"policy.path": policy, "policy.device": "cpu"})
    for load in (
        lambda: ReferenceScorer(policy, ReferenceSection(device="cpu")),
        lambda: RewardScorer(reward, RewardSection(device="cpu")),
        lambda: actor_critic.load(policy, PpoSection(device="cpu")),
        lambda: policy_service._load(served, PolicyMetrics(CollectorRegistry())),
    ):
        with pytest.raises(ModelLoadError, match=refusal):
            load()


def test_embedding_may_have_more_rows_than_tokens(tmp_path: Path):
    """As in Qwen, whose embedding is padded."""
    path = str(architectures.causal_lm("qwen2", tmp_path))
    scorer = ReferenceScorer(path, ReferenceSection(device="cpu"))
    assert scorer.info.model.vocabulary_size == len(architectures.tokenizer_of("qwen2")) + 11


def test_reward_models_with_custom_code_are_rejected_by_name(tmp_path: Path):
    """As ArmoRM is: its config names a class that reads the score through a gate."""
    tiny_reward_model(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["architectures"] = ["LlamaForRewardModelWithGating"]
    settings["auto_map"] = {"AutoModelForSequenceClassification": "modeling.LlamaForRewardModelWithGating"}
    settings["id2label"] = {str(label): f"LABEL_{label}" for label in range(19)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ModelLoadError,
        match=r"made for LlamaForRewardModelWithGating, .*remote code is never run.*one label$",
    ):
        load_reward_model(str(tmp_path), CPU)


def test_encoder_with_segments_is_rejected(tmp_path: Path):
    """BERT separates prompt and answer by segment ids, which do not travel with the tokens."""
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ModelLoadError,
        match=r"BertForSequenceClassification of .*neither.*nor as an encoder without segments",
    ):
        RewardScorer(str(tmp_path), RewardSection(device="cpu"))
