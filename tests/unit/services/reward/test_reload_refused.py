"""Replacements of a reward model that are refused or logged; the served model is kept."""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil

import pytest
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file

from fairlead import metrics
from fairlead.clients import AsyncRewardAdminClient, AsyncRewardClient
from fairlead.config.serving import RewardSection
from fairlead.errors import (
    InvalidInput,
    ModelLoadError,
    NotFound,
    PermissionDenied,
    RankLost,
    Unauthenticated,
)
from fairlead.rpc.retry import RetryPolicy
from fairlead.types import TokenPair
from services.reward.loaded import LoadedModel
from services.reward.scorer import RewardScorer
from services.reward.swapping import SwappingScoring
from tests.tiny import tiny_causal_lm, tiny_reward_model, tiny_tokenizer
from tests.unit.services.reward.reward_world import reward_service
from tests.unit.services.runtime.keys_world import Keys

ONCE = RetryPolicy(max_attempts=1)

OPEN = {"allow_reload": "always"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return [tiny_reward_model(tmp_path_factory.mktemp(f"reward{seed}"), seed=seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def broken(tmp_path_factory, models):
    """A reward model whose head is NaN."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(models[0], folder)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"][:] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


async def test_invalid_replacement_is_refused_and_served_model_is_kept(models, broken, tmp_path):
    async with (
        reward_service(models[0], **OPEN) as world,
        AsyncRewardAdminClient(world.address, retry=ONCE) as admin,
    ):
        before = await admin.models()
        language_model = tiny_causal_lm(tmp_path / "lm")
        for path, reason in (
            (tmp_path / "none", "none"),
            (language_model, "lacks the weights score.weight"),
            (broken, "has weights that are NaN or infinite, such as in score.weight"),
            ("", "got 'nothing'"),
        ):
            with pytest.raises(InvalidInput, match="path: got") as error:
                await admin.load(str(path))
            assert reason in str(error.value)
        for share in (-0.1, 1.0, math.nan):
            with pytest.raises(InvalidInput, match="canary_share"):
                await admin.load(str(models[1]), canary_share=share)
        with pytest.raises(InvalidInput, match="a model of another version"):
            await admin.load(str(models[0]), canary_share=0.5)
        with pytest.raises(NotFound, match="there is no canary"):
            await admin.set_share(0.5)
        with pytest.raises(NotFound, match="there is no canary"):
            await admin.promote()
        assert await admin.load(str(models[0])) == before, "the model is served already"
        await admin.load(str(models[1]), canary_share=0.5)
        with pytest.raises(NotFound, match="no canary of version 'abc'"):
            await admin.promote("abc")
        assert await admin.abandon() == before
        assert world.registry.get_sample_value("fairlead_reward_load_failures_total") == 3
        assert world.registry.get_sample_value("fairlead_reward_swaps_total") == 0


async def test_replacement_whose_rank_is_lost_is_refused_and_served_model_is_kept(models):
    """A rank of the replacement ends, for example because its GPU has no memory for a second model."""
    registry = CollectorRegistry()
    section = RewardSection(path=str(models[0]), device="cpu")
    starts = itertools.count()
    async with await SwappingScoring.open(
        section.path,
        section,
        batcher_metrics=metrics.BatcherMetrics(registry),
        reward_metrics=metrics.RewardMetrics(registry),
        load=lambda work: asyncio.to_thread(work) if next(starts) == 0 else rank_lost(),
    ) as scoring:
        before = scoring.info
        with pytest.raises(ModelLoadError, match="cannot be loaded: rank 1 of 2 has ended"):
            await scoring.load(str(models[1]))
        assert scoring.info == before
        assert not scoring.failure.done()
        assert registry.get_sample_value("fairlead_reward_load_failures_total") == 1


async def rank_lost() -> RewardScorer:
    raise RankLost("rank 1 of 2 has ended")


@pytest.mark.parametrize("allow", ["auto", "never"])
async def test_replacement_without_permission_is_refused(models, allow):
    async with (
        reward_service(models[0], allow_reload=allow) as world,
        AsyncRewardAdminClient(world.address, retry=ONCE) as admin,
    ):
        for call in (admin.models, lambda: admin.load(str(models[1])), admin.promote, admin.abandon):
            with pytest.raises((PermissionDenied, Unauthenticated), match="reward.allow_reload"):
                await call()


async def test_change_of_tokenizer_and_length_is_logged(models, tmp_path, caplog):
    short = tiny_reward_model(tmp_path, seed=9, max_position_embeddings=64)
    tiny_tokenizer(size=40).save_pretrained(short)
    async with reward_service(models[0]) as world, AsyncRewardClient(world.address) as client:
        before = await client.info()
        await world.scoring.load(str(short))
        info = await client.info()
        assert info.model.max_sequence_tokens == 64
        assert info.model.tokenizer_fingerprint != before.model.tokenizer_fingerprint
        assert (
            f"from {before.model.tokenizer_fingerprint} to {info.model.tokenizer_fingerprint}" in caplog.text
        )
        assert "max_sequence_tokens changed from 128 to 64" in caplog.text
        with pytest.raises(InvalidInput, match="at most 64 tokens"):
            await client.score([TokenPair((), (5,) * 65)])


async def test_out_of_memory_during_load_is_reported(models):
    async def out_of_memory(work):
        raise RuntimeError("CUDA out of memory")

    section = RewardSection(device="cpu")
    with pytest.raises(ModelLoadError, match="cannot be loaded: CUDA out of memory"):
        await LoadedModel.load(
            str(models[0]),
            section,
            batcher_metrics=metrics.BatcherMetrics(CollectorRegistry()),
            load=out_of_memory,
        )


async def test_replacement_needs_scope_admin_where_keys_are_required(models, tmp_path):
    keys = Keys(tmp_path)
    scorer = keys.add("scorer", scopes=("score",))
    operator = keys.add("operator", scopes=("admin",))
    async with reward_service(models[0], keys=keys.section) as world:
        async with AsyncRewardAdminClient(world.address, retry=ONCE, api_key=scorer) as admin:
            with pytest.raises(PermissionDenied, match="admin"):
                await admin.load(str(models[1]))
        async with AsyncRewardAdminClient(world.address, retry=ONCE, api_key=operator) as admin:
            (served,) = await admin.load(str(models[1]))
        assert served.info.model.model_id == str(models[1])
