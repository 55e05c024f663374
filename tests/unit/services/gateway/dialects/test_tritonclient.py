"""The gateway with an unchanged `tritonclient.http`."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from fairlead.clients import AsyncRewardClient
from fairlead.types import TokenPair, WholeText
from services.open_inference.versions import number_of
from tests.gateway_world import gateway, reward_server
from tests.tiny import tiny_reward_model

TEXTS = ["w1 w2 w3", "w4", "w5 w6"]


def calls(address: str, version: str) -> dict[str, object]:
    """Make every call of the client that concerns a model; return the results by name."""
    found: dict[str, object] = {}
    with tritonclient.http.InferenceServerClient(address) as client:
        found["live"] = client.is_server_live()
        found["ready"] = client.is_server_ready()
        found["model"] = client.is_model_ready("reward")
        found["version"] = client.is_model_ready("reward", version)
        found["other"] = client.is_model_ready("other")
        found["server"] = client.get_server_metadata()["name"]
        found["metadata"] = client.get_model_metadata("reward")["versions"]
        found["config"] = client.get_model_config("reward", version)["name"]
        found["regions"] = client.get_system_shared_memory_status(), client.get_cuda_shared_memory_status()
        client.unregister_system_shared_memory()
        found["index"] = client.get_model_repository_index()[0]["state"]
        for binary in (True, False):
            sentences = tritonclient.http.InferInput("sentences", [3, 1], "BYTES")
            sentences.set_data_from_numpy(np.array(TEXTS, dtype=np.object_).reshape(3, 1), binary_data=binary)
            result = client.infer("reward", [sentences], request_id="a", priority=2, timeout=10_000_000)
            found[f"sentences {binary}"] = result.as_numpy("rewards")
            tokens = tritonclient.http.InferInput("tokens", [2, 3], "INT64")
            tokens.set_data_from_numpy(np.array([[1, 5, 2], [1, 2, 0]]), binary_data=binary)
            lengths = tritonclient.http.InferInput("sequence_lengths", [2, 1], "INT64")
            lengths.set_data_from_numpy(np.array([[3], [2]]), binary_data=binary)
            outputs = [tritonclient.http.InferRequestedOutput("rewards", binary_data=binary)]
            result = client.infer("reward", [tokens, lengths], outputs=outputs, model_version=version)
            found[f"tokens {binary}"] = result.as_numpy("rewards")
        for compression in ("gzip", "deflate"):
            result = client.infer("reward", [sentences], request_compression_algorithm=compression)
            found[compression] = result.as_numpy("rewards")
        found["parameters"] = result.get_response()["parameters"]
        statistics = client.get_inference_statistics("reward")["model_stats"][0]
        found["statistics"] = statistics["inference_count"], statistics["execution_count"]
        found["all"] = client.get_inference_statistics()["model_stats"][0]["name"]
        tokens.set_data_from_numpy(np.array([[1, 5, 99], [1, 2, 0]]))
        with pytest.raises(InferenceServerException) as refused:
            client.infer("reward", [tokens, lengths])
        found["refused"] = refused.value.status(), refused.value.message()
    return found


async def test_every_call_of_tritonclient_works(tmp_path):
    async with reward_server(tiny_reward_model(tmp_path)) as address, gateway(reward=address) as http:
        async with AsyncRewardClient(address) as client:
            sentences = (await client.score([WholeText(text) for text in TEXTS])).scores
            tokens = (await client.score([TokenPair((), (1, 5, 2)), TokenPair((), (1, 2))])).scores
            version = (await client.info()).model_version
        found = await asyncio.to_thread(calls, http.address, version)
    for name in ("sentences True", "sentences False", "gzip", "deflate"):
        assert found[name].shape == (3, 1)
        assert found[name][:, 0] == pytest.approx(sentences, abs=1e-5)
    for name in ("tokens True", "tokens False"):
        assert found[name][:, 0] == pytest.approx(tokens, abs=1e-5)
    assert [found[name] for name in ("live", "ready", "model", "version", "other")] == [*[True] * 4, False]
    assert (found["server"], found["config"], found["index"]) == ("fairlead", "reward", "READY")
    assert (found["metadata"], found["all"]) == ([number_of(version)], "reward")
    assert found["regions"] == ([], [])
    assert found["statistics"] == (16, 6)
    assert set(found["parameters"]) >= {"queue_seconds", "compute_seconds", "num_tokens"}
    status, message = found["refused"]
    assert status == "400"
    assert "99 at position 2" in message
