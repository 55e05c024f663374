"""The reward service in front of a real server of the Open Inference Protocol, in this process.

The server is Fairlead's own reward service; a slow test uses a real Triton.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import pytest

from benchmarks.triton_server import free_address
from fairlead.config.serving import BatchingSection, RewardSection, TritonSection
from fairlead.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    Unavailable,
)
from fairlead.types import Message, Priority, TextPair, TokenPair, WholeText
from services.reward.scoring import ScoreCall
from services.reward.triton import scoring as triton_scorer
from tests import architectures
from tests.unit.services.reward.reward_world import reward_service
from tests.unit.services.reward.test_scorer import assert_same, foreign
from tests.waiting import until


def section(path, address: str, *, batching: BatchingSection | None = None, **triton) -> RewardSection:
    return RewardSection(
        engine="triton",
        path=str(path),
        batching=batching or BatchingSection(),
        triton=TritonSection(addresses=(address,), **triton),
    )


@asynccontextmanager
async def front(settings: RewardSection):
    reader, served = await triton_scorer.connect(settings.path, settings)
    async with triton_scorer.serving(reader, served, settings, lambda _ready: None) as scoring:
        yield scoring


def drawn(count: int, *, seed: int = 0) -> list[TokenPair]:
    rng = random.Random(seed)

    def ids() -> tuple[int, ...]:
        return tuple(rng.randrange(60) for _ in range(rng.randint(1, 60)))

    return [TokenPair(ids(), ids()) for _ in range(count)]


async def test_scores_versions_and_counts_equal_those_of_the_server(reward_folder):
    items = [*drawn(50), TextPair("w1 w2", "w3"), WholeText("w4 w5"), TextPair("", "")]
    async with (
        reward_service(reward_folder) as world,
        front(section(reward_folder, world.address)) as scoring,
    ):
        many = await asyncio.gather(
            scoring.score(items, ScoreCall(deadline=None)),
            *(scoring.score([item], ScoreCall(deadline=None, priority=Priority.BULK)) for item in items),
        )
        sequences = world.scorer.encode(items)
        expected = [world.scorer.score([sequence])[0] for sequence in sequences]
        assert_same(many[0].scores, expected)
        assert_same([one.scores[0] for one in many[1:]], expected)
        assert many[0].num_tokens == tuple(len(sequence) for sequence in sequences)
        assert {one.model_version for one in many} == {world.scorer.info.model_version}
        assert scoring.info.model.tokenizer_fingerprint == world.scorer.info.model.tokenizer_fingerprint
        assert scoring.info.model.max_sequence_tokens == 128


@pytest.mark.parametrize("make", [foreign, lambda folder: architectures.reward_model("qwen3", folder)])
async def test_conversations_are_read_in_the_form_the_model_was_trained_on(tmp_path, make):
    path = make(tmp_path)
    items = [TextPair("where ?", "here ."), TextPair("unread", "here .", (Message("user", "where ?"),))]
    async with reward_service(path) as world, front(section(path, world.address)) as scoring:
        found = await scoring.score(items, ScoreCall(deadline=None))
        sequences = world.scorer.encode(items)
        assert found.num_tokens == tuple(len(sequence) for sequence in sequences)
        assert_same(found.scores, [world.scorer.score([sequence])[0] for sequence in sequences])


async def test_sentences_are_tokenized_by_the_server(reward_folder):
    async with reward_service(reward_folder) as world:
        async with front(section(reward_folder, world.address, sends="sentences")) as scoring:
            found = await scoring.score([TextPair("w1 w2 ", "w3"), WholeText("w7")], ScoreCall(deadline=None))
            expected = world.scorer.encode([WholeText("w1 w2 w3"), WholeText("w7")])
            assert_same(found.scores, [world.scorer.score([sequence])[0] for sequence in expected])
            long = [WholeText("w1"), WholeText("w1 " * 200), WholeText("w2")]
            with pytest.raises(InvalidInput, match=r"items\[1\]: got '202 tokens', allowed: at most 128"):
                await scoring.score(long, ScoreCall(deadline=None))
            for item, said in (
                (TokenPair((1,), (2,)), r"items.tokens\[0\]: got 'ids', allowed: text"),
                (TextPair("", "w1", (Message("user", "w2"),)), r"items.text.messages\[0\]: got '1 messages'"),
                (TextPair("", ""), r"items.text.response\[0\]: got 'an empty text'"),
            ):
                with pytest.raises(InvalidInput, match=said):
                    await scoring.score([item], ScoreCall(deadline=None))


async def test_invalid_items_are_refused_before_anything_is_sent(reward_folder):
    async with (
        reward_service(reward_folder) as world,
        front(section(reward_folder, world.address)) as scoring,
    ):
        for items, said in (
            ([], "items: got 0"),
            (
                [TokenPair((1,), (2,)), TokenPair((60,), (2,))],
                r"prompt_token_ids\[1\]: got '60 at position 0'",
            ),
            ([TokenPair((1,), ())], r"response_token_ids\[0\]: got 'no token ids'"),
            ([TokenPair((1,), (2,) * 128)], r"items.tokens\[0\]: got '129 tokens'"),
        ):
            with pytest.raises(InvalidInput, match=said):
                await scoring.score(items, ScoreCall(deadline=None))
        with pytest.raises(DeadlineExceeded):
            await scoring.score([TokenPair((1,), (2,))], ScoreCall(deadline=time.monotonic() - 1))
        with pytest.raises(NotFound, match="no version 'other'"):
            await scoring.score([TokenPair((1,), (2,))], ScoreCall(deadline=None, model_version="other"))


async def test_tokens_in_flight_are_limited(reward_folder):
    batching = BatchingSection(max_queue_tokens=100)
    async with reward_service(reward_folder) as world:
        async with front(section(reward_folder, world.address, batching=batching)) as scoring:
            item = TokenPair((1,) * 30, (2,) * 30)
            outcomes = await asyncio.gather(
                *(scoring.score([item], ScoreCall(deadline=None)) for _ in range(3)), return_exceptions=True
            )
            assert [type(one) for one in outcomes[1:]] == [Overloaded, Overloaded]
            assert outcomes[1].retry_after_seconds > 0
            call = ScoreCall(deadline=time.monotonic() + 30, waits=True)
            waiting = [scoring.score([item], call) for _ in range(4)]
            assert {one.scores for one in await asyncio.gather(*waiting)} == {outcomes[0].scores}
            with pytest.raises(InvalidInput, match="items: got '120 tokens', allowed: at most 100 tokens"):
                await scoring.score([item] * 2, ScoreCall(deadline=None))


async def test_front_waits_for_the_server_and_follows_its_readiness(reward_folder):
    address = free_address()
    reported = list[bool]()
    settings = section(reward_folder, address, max_attempts=2, timeout_seconds=5)
    connecting = asyncio.ensure_future(triton_scorer.connect(settings.path, settings))
    async with reward_service(reward_folder, bind=address) as world:
        reader, served = await connecting
        async with triton_scorer.serving(reader, served, settings, reported.append) as scoring:
            await until(lambda: reported[-1:] == [True])
            world.server.set_ready(False)
            await until(lambda: reported[-1] is False)
            world.server.set_ready(True)
            await until(lambda: reported[-1] is True)
            await world.server.drain()
            await until(lambda: reported[-1] is False)
            with pytest.raises(Unavailable, match="triton at"):
                await scoring.score([TokenPair((1,), (2,))], ScoreCall(deadline=None))


def test_sentences_do_not_import_torch():
    """A front of a server that tokenizes imports neither torch nor transformers."""
    code = (
        "import sys, services.reward.__main__, services.reward.triton.scoring as _; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_other_tokenizer_and_missing_inputs_are_refused(reward_folder, tmp_path):
    other = architectures.reward_model("gpt2", tmp_path)
    async with reward_service(reward_folder) as world:
        with pytest.raises(ConfigError, match=r"reward.path: got .*with tokenizer"):
            await triton_scorer.connect(str(other), section(other, world.address))
