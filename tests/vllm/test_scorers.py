"""Reward and reference models computed by vLLM: the numbers of our own engine, refusals, the end of vLLM."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from fairlead.clients import AsyncRewardAdminClient, AsyncRewardClient
from fairlead.config.serving import ReferenceSection, RewardSection
from fairlead.errors import ConfigError, EngineFailed, InvalidInput, ModelLoadError, NotOffered, Unavailable
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import TokenPair
from services.reference.model import Lookup
from services.reference.scorer import ReferenceScorer
from services.reward.scorer import RewardScorer
from tests.engine_world import tiny
from tests.tiny import add_head, tiny_tokenizer
from tests.unit.services.reward.reward_world import reward_service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1_800),
    # Of vLLM's own imports.
    pytest.mark.filterwarnings("ignore"),
]

OPTIONS = {"kv_cache_memory_bytes": 64 << 20, "enforce_eager": True}
TOLERANCE = 1e-4


def pairs(count: int = 24) -> list[TokenPair]:
    rng = random.Random(1)

    def ids(longest: int) -> tuple[int, ...]:
        return tuple(rng.randrange(4, 60) for _ in range(rng.randint(1, longest)))

    longest = TokenPair(tuple(rng.randrange(4, 60) for _ in range(128)), ids(1) * 128)
    return [longest, TokenPair((5,), (6,)), *(TokenPair(ids(80), ids(80)) for _ in range(count))]


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    tiny(folder, seed=2, tied=False)
    return add_head(folder, tiny_tokenizer(), seed=2, bias=0.3)


def vllm_processes() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if "VLLM" in one.name()]


async def test_service_gives_the_scores_of_our_own_engine_until_vllm_ends(reward_folder: Path):
    own = await asyncio.to_thread(RewardScorer, str(reward_folder), RewardSection(device="cpu"))
    expected = own.score(own.encode(pairs()))
    settings = {"engine": "vllm", "vllm": OPTIONS, "allow_reload": "always"}
    async with (
        reward_service(reward_folder, **settings) as world,
        AsyncRewardClient(world.address, retry=RetryPolicy(max_attempts=1)) as client,
        AsyncRewardAdminClient(world.address) as admin,
    ):
        assert world.scorer.info == own.info
        for _ in range(2):  # the second time, from vLLM's prefix cache
            found = await client.score(pairs())
            differences = [abs(a - b) for a, b in zip(found.scores, expected, strict=True)]
            print(f"reward: largest difference {max(differences):.2g}")  # noqa: T201
            assert max(differences) <= TOLERANCE
        with pytest.raises(NotOffered, match="cannot be replaced"):
            await admin.load(str(reward_folder))
        assert vllm_processes()
        for process in vllm_processes():
            process.send_signal(signal.SIGKILL)
        with pytest.raises(EngineFailed, match="vLLM's engine has ended"):
            await asyncio.wait_for(asyncio.wrap_future(world.scoring.failure), 60)
        with pytest.raises(Unavailable, match="vLLM's engine has ended"):
            await client.score(pairs())
    assert not vllm_processes()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_those_of_our_own_engine(tmp_path: Path, temperature: float):
    tiny(tmp_path, seed=1, tied=temperature == 1.0)
    own = ReferenceScorer(str(tmp_path), ReferenceSection(device="cpu"))
    section = ReferenceSection(engine="vllm", vllm=OPTIONS)
    scorer = ReferenceScorer(str(tmp_path), section, temperature=temperature)
    try:
        assert scorer.info == own.info
        lookups = scorer.check(pairs(), temperature)
        assert lookups == [Lookup(pair, temperature) for pair in pairs()]
        largest = 0.0
        for _ in range(2):
            for found, expected in zip(scorer.logprobs(lookups), own.logprobs(lookups), strict=True):
                assert isinstance(found, tuple)
                assert isinstance(expected, tuple)
                largest = max(largest, *(abs(a - b) for a, b in zip(found, expected, strict=True)))
        print(f"reference at {temperature}: largest difference {largest:.2g}")  # noqa: T201
        assert largest <= TOLERANCE
        with pytest.raises(InvalidInput, match=f"temperature: got 1.3, allowed: {temperature:g}"):
            scorer.check(pairs(), 1.3)
        with ThreadPoolExecutor(1) as pool:
            batch = pool.submit(scorer.logprobs, scorer.check(pairs(1_000), temperature))
            while not batch.running():
                time.sleep(0.01)
            scorer.close()
            with pytest.raises(Unavailable, match="the reference service is stopping"):
                batch.result(timeout=60)
        with pytest.raises(Unavailable, match="the reference service is stopping"):
            scorer.logprobs(lookups)
    finally:
        scorer.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enforce_eagre": True}, r"reward.vllm.enforce_eagre: .*such as enforce_eager"),
        ({"max_num_batched_tokens": -5}, "reward.engine: got .* a model and options that vLLM takes"),
    ],
)
def test_wrong_options_are_refused(reward_folder: Path, options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        RewardScorer(str(reward_folder), RewardSection(engine="vllm", vllm=options))


def test_architecture_without_a_linear_score_at_the_last_token_is_refused(tmp_path: Path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="BertForSequenceClassification is none that"):
        RewardScorer(str(tmp_path), RewardSection(engine="vllm"))
