"""Models that `fairlead export-triton` writes, served by a real Triton, score like the reward service.

Triton comes from the package nvidia-pytriton in a separate environment (benchmarks/triton_server.py). Where
it cannot be installed, the tests are skipped with the reason.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from benchmarks.triton_server import NoTriton, TritonServer, environment
from fairlead import RewardClient
from fairlead.config.serving import RewardSection, TritonSection
from fairlead.errors import ConfigError, InvalidInput
from fairlead.types import Message, Priority, TextPair, TokenPair
from services.reward.scorer import RewardScorer
from services.reward.scoring import ScoreCall
from services.reward.triton import scoring as triton_scorer
from services.reward.triton.export import TritonExport, export
from tests import architectures
from tests.service_process import Starter
from tests.tiny import tiny_reward_model
from tests.unit.services.reward.test_ensemble import ensemble as ensemble_folder
from tests.unit.services.reward.test_scorer import foreign

pytestmark = pytest.mark.slow


@dataclass
class World:
    """Models, and a Triton that serves them."""

    folders: dict[str, Path]
    server: TritonServer

    def section(self, name: str, **settings: object) -> RewardSection:
        triton = TritonSection(addresses=(self.server.address,), model=name)
        return RewardSection(
            engine="triton", path=str(self.folders[name]), triton=triton.model_copy(update=settings)
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    try:
        environment()
    except NoTriton as error:
        pytest.skip(f"Triton is not available: {error}")
    made = tmp_path_factory.mktemp("models")
    folders = {
        "ours": tiny_reward_model(made / "ours"),
        "equal": tiny_reward_model(made / "equal", seed=4),
        "qwen3": architectures.reward_model("qwen3", made / "qwen3"),
        "hub": foreign(made / "hub"),
        "ensemble": ensemble_folder(made / "ensemble", 0, 1, 2),
    }
    repository = made / "repository"
    for name, folder in folders.items():
        if name == "ours":
            command = [sys.executable, "-m", "fairlead.cli", "export-triton", str(folder), str(repository)]
            done = subprocess.run(
                [*command, "--name", name], capture_output=True, text=True, check=False, timeout=300
            )
            assert done.returncode == 0, done.stderr
        else:
            export(TritonExport(model=str(folder), target=repository, name=name, ragged=name != "equal"))
    with TritonServer(repository, made / "triton.log") as server:
        yield World(folders, server)


def assert_same(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert abs(one - other) <= 1e-5 * max(1.0, abs(other))


def drawn(count: int, *, seed: int, vocabulary: int = 60, longest: int = 60) -> list[TokenPair]:
    rng = random.Random(seed)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(rng.randint(1, most)))

    return [TokenPair(ids(longest), ids(longest)) for _ in range(count)]


def expected_of(folder: Path, items) -> list[float]:
    scorer = RewardScorer(str(folder), RewardSection(device="cpu"))
    return [scorer.score([sequence])[0] for sequence in scorer.encode(items)]


def score_through(section: RewardSection, *requests, priority: Priority = Priority.ONLINE):
    """Score all requests at the same time through the reward service's Triton engine."""

    async def run():
        reader, served = await triton_scorer.connect(section.path, section)
        async with triton_scorer.serving(reader, served, section, lambda _ready: None) as scoring:
            return await asyncio.gather(
                *(scoring.score(items, ScoreCall(deadline=None, priority=priority)) for items in requests)
            )

    return asyncio.run(run())


@pytest.mark.parametrize("name", ["ours", "equal", "qwen3", "hub", "ensemble"])
def test_scores_equal_those_of_the_reward_service(world: World, name):
    items = [*drawn(100, seed=1), TextPair("w1 w2", "w3"), TextPair("", "here ."), TextPair("where ?", "")]
    if name in ("qwen3", "hub"):
        items.append(TextPair("unread", "here .", (Message("user", "where ?"),)))
    (found,) = score_through(world.section(name), items)
    assert_same(found.scores, expected_of(world.folders[name], items))
    scorer = RewardScorer(str(world.folders[name]), RewardSection(device="cpu"))
    assert found.model_version == scorer.info.model_version
    assert found.num_tokens == tuple(len(sequence) for sequence in scorer.encode(items))
    assert len({round(score, 3) for score in found.scores}) > 50, "equal scores would prove nothing"


def test_only_ragged_batching_merges_requests_of_different_lengths(world: World):
    """64 callers with one sequence each: merged for any lengths, or for equal lengths only."""
    passes = {}
    for name in ("ours", "equal"):
        items = drawn(64, seed=2)
        # The server runs one batch at a time, so all but the first few requests wait together.
        results = score_through(world.section(name), *([item] for item in items))
        assert_same([one.scores[0] for one in results], expected_of(world.folders[name], items))
        with triton_grpc.InferenceServerClient(world.server.address) as client:
            before = client.get_inference_statistics(name, as_json=True)["model_stats"][0]
            score_through(world.section(name), *([item] for item in items))
            after = client.get_inference_statistics(name, as_json=True)["model_stats"][0]
        passes[name] = int(after["execution_count"]) - int(before["execution_count"])
    assert passes["ours"] <= 20
    assert passes["equal"] > 30


def test_tritonclient_scores_directly(world: World):
    pairs = drawn(5, seed=3)
    rows = [(*pair.prompt_token_ids, *pair.response_token_ids) for pair in pairs]
    lengths = np.array([[len(row)] for row in rows])
    tokens = np.full((5, int(lengths.max())), 7)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    expected = expected_of(world.folders["ours"], pairs)
    for kind, address in (
        (triton_grpc, world.server.address),
        (triton_http, world.server.http_address),
    ):
        client = kind.InferenceServerClient(address)
        inputs = [
            kind.InferInput("tokens", tokens.shape, "INT64"),
            kind.InferInput("sequence_lengths", [5, 1], "INT64"),
        ]
        inputs[0].set_data_from_numpy(tokens)
        inputs[1].set_data_from_numpy(lengths)
        found = client.infer("ours", inputs)
        assert_same(found.as_numpy("rewards")[:, 0].tolist(), expected)
        assert found.as_numpy("num_tokens").tolist() == lengths.tolist()
        client.close()


def test_sentences_are_tokenized_by_the_server(world: World):
    section = world.section("ours", sends="sentences")
    pairs = [TextPair("w1 w2 ", "w3"), TextPair("w9 w10 w11 ", "w4 w5")]
    (found,) = score_through(section, pairs)
    assert_same(found.scores, expected_of(world.folders["ours"], pairs))
    assert found.num_tokens == (5, 7)
    with pytest.raises(InvalidInput, match=r"items\[1\]: got 202 tokens, allowed: 1 to 128 tokens"):
        score_through(section, [TextPair("w1", ""), TextPair("w1 " * 200, "")])
    with pytest.raises(InvalidInput, match=r"items.text.messages\[0\]: got '1 messages'"):
        score_through(section, [TextPair("", "w1", (Message("user", "w2"),))])
    with pytest.raises(InvalidInput, match=r"items.tokens\[0\]: got 'ids'"):
        score_through(section, [TokenPair((1,), (2,))])


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        ([[1, 60]], [[2]], r"tokens\[0\]: got id 60, allowed: ids from 0 to 59"),
        ([[1, 5], [-3, 5]], [[2], [2]], r"tokens\[1\]: got id -3"),
        ([[5] * 129], None, r"tokens\[0\]: got 129 tokens, allowed: 1 to 128 tokens"),
        ([[1, 5]], [[3]], r"sequence_lengths: got \[3\], allowed: one of 1 to 2"),
        ([[1, 5]], [[0]], r"sequence_lengths: got \[0\]"),
    ],
)
def test_invalid_request_is_named_and_does_not_affect_others(world: World, tokens, lengths, message):
    with triton_grpc.InferenceServerClient(world.server.address) as client:
        inputs = [triton_grpc.InferInput("tokens", np.shape(tokens), "INT64")]
        inputs[0].set_data_from_numpy(np.array(tokens))
        if lengths is not None:
            inputs.append(triton_grpc.InferInput("sequence_lengths", np.shape(lengths), "INT64"))
            inputs[1].set_data_from_numpy(np.array(lengths))
        with pytest.raises(triton_grpc.InferenceServerException, match=message) as refused:
            client.infer("ours", inputs)
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    item = TokenPair((1,), (5, 6))
    (found,) = score_through(world.section("ours"), [item], priority=Priority.BULK)
    assert_same(found.scores, expected_of(world.folders["ours"], [item]))


def test_other_tokenizer_is_refused(world: World):
    section = world.section("ours").model_copy(update={"path": str(world.folders["qwen3"])})
    with pytest.raises(ConfigError, match=r"reward.path: got .*qwen3.*, with tokenizer "):
        asyncio.run(triton_scorer.connect(section.path, section))


def test_reward_service_in_front_follows_readiness(world: World, tmp_path):
    """The process with `reward.engine = triton`: started before Triton, ready only while Triton is."""
    starter = Starter(tmp_path)
    items = drawn(3, seed=5)
    again = TritonServer(world.server.repository, tmp_path / "triton.log")
    try:
        with again:
            address = again.address
            front = starter(
                "reward",
                world.folders["ours"],
                **{
                    "reward.engine": "triton",
                    "reward.triton.model": "ours",
                    "reward.triton.addresses": f'["{address}"]',
                },
            )
            front.until(lambda: front.get("/readyz")[0] == 200, seconds=600)
            with RewardClient(front.address) as client:
                scores = client.score([*items, ("w1 w2", "w3")])
                with pytest.raises(InvalidInput, match=r"items.tokens.response_token_ids\[1\]: got '99 at"):
                    client.score([items[0], TokenPair((1,), (99,))])
            assert_same(scores.scores, expected_of(world.folders["ours"], [*items, TextPair("w1 w2", "w3")]))
        front.until(lambda: front.get("/readyz")[0] == 503, seconds=120)
        assert front.stop() == 0
    finally:
        starter.stop()
