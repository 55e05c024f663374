"""Fuzz the gateway: schemathesis with its OpenAPI schema, hypothesis with inputs outside of it.

The slow test sends more than 8,000 inputs to real processes and checks that their memory does not grow.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway_world import ask, gateway, policy_server
from tests.service_process import Starter
from tests.tiny import tiny_causal_lm, tiny_reward_model
from tests.unit.services.reward.reward_world import Threaded, reward_service

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
ALL = list(HealthCheck)


def limits(examples: int) -> settings:
    # Without shrinking and a database: a failure reports the original input.
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=ALL,
        phases=[Phase.generate],
        derandomize=True,
    )


@dataclass
class Target:
    """A gateway, and a count of its responses by status."""

    address: str
    statuses: Counter[int] = field(default_factory=Counter)

    def check(self, status: int, body: bytes, sent: object) -> None:
        self.statuses[status] += 1
        assert status < 500, (status, body[:500], sent)
        assert b"Traceback" not in body

    def check_field(self, path: str, body: object) -> None:
        """Send JSON; if it is refused, the error must name a place in it, or a key that it lacks."""
        answer = ask(self.address, "POST", path, body)
        self.check(answer.status, answer.body, (path, body))
        error = answer.json.get("error") if answer.status == 400 else None
        if isinstance(error, dict):
            named = error.get("field") or error.get("param") or "body"
            known = set(places(body)) | {"body"}
            assert named in known or named.rpartition(".")[0] in known | {""}, (named, body)

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        answer = ask(self.address, "POST", path, body, headers)
        self.check(answer.status, answer.body, (path, body[:500], headers))


def places(value: object, place: str = "") -> Iterator[str]:
    """Yield the path of every value of a body as errors write it."""
    yield place.removeprefix(".")
    if isinstance(value, dict):
        for key, one in value.items():
            yield from places(one, f"{place}.{key}")
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from places(one, f"{place}[{index}]")


def shortened(path: str, body: object) -> object:
    """Return the body with limits that make the policy's answers short, to save time."""
    if not isinstance(body, dict):
        return body
    found = dict(body)
    for name in ("max_tokens", "max_completion_tokens", "n"):
        if isinstance(found.get(name), int) and found[name] > 4:
            found[name] = found[name] % 4 + 1
    if path.endswith("completions"):
        found.setdefault("max_tokens", 2)
    if path.endswith("best-of-n") and not found.get("responses"):
        found.setdefault("sampling", {})
    if isinstance(found.get("sampling"), dict):
        found["sampling"] = found["sampling"] | {"n": 2, "max_new_tokens": 2}
    return found


def fuzz_with_schema(target: Target, examples: int, *, every: int = 1) -> None:
    """Send bodies and parameters that match the OpenAPI schema, and some that do not.

    Args:
        target: the gateway.
        examples: how many of each kind to an operation.
        every: 3 for a third of the operations; the strategies of each take half a second.
    """
    schema = schemathesis.openapi.from_url(f"http://{target.address}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    for operation in operations[::every]:
        plain = operation.method.upper() == "GET"
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and (plain or not operation.body):
                continue

            @limits(min(examples, 10) if plain else examples)
            @given(case=operation.as_strategy(generation_mode=mode))
            def one(case) -> None:
                case.body = shortened(case.operation.path, case.body)
                # A short time would rightly end many requests with 504.
                case.headers.pop("X-Request-Timeout", None)
                response = case.call(timeout=100)
                target.check(response.status_code, response.content, case.body)
                case.validate_response(response, checks=CHECKS)

            one()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["w1 w2", "</s>", "\x00", "reward", "BYTES", "INT64", 2**31, -1, 10**400]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["role", "content", "text"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
FIELDS = {
    "/v1/rewards": ("prompt", "responses", "items", "calibrated", "priority", "messages"),
    "/v1/rewards:rank": ("prompt", "responses", "calibrated"),
    "/get_reward": ("query", "prompts", "labels"),
    "/classify": ("model", "input", "use_activation"),
    "/v1/embeddings": ("model", "input", "encoding_format"),
    "/v1/chat/completions": ("model", "messages", "stop", "stream", "temperature", "logit_bias"),
    "/v2/models/reward/infer": ("id", "inputs", "outputs", "parameters"),
    "/v2/repository/index": ("ready",),
}
SIZES = st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**63, 10**30, 1.5, "1", None])
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["sentences", "tokens", "sequence_lengths", "rewards", ""]) | JSON,
        "datatype": st.sampled_from(["BYTES", "INT64", "INT32", "UINT64", "FP32", "BOOL"]) | JSON,
        "shape": st.lists(SIZES, max_size=4) | JSON,
    },
    optional={
        "data": st.lists(st.text(max_size=5) | st.integers() | JSON, max_size=4) | JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "shared_memory_region"]), SIZES),
    },
)
TAILS = st.binary(max_size=24) | st.builds(
    lambda size, text: struct.pack("<I", size % 2**32) + text, st.integers(0, 2**32), st.binary(max_size=8)
)


def fuzz_without_schema(target: Target, examples: int) -> None:
    """Send inputs outside of the schema: bytes, any JSON, invalid tensors, wrong headers."""
    paths = st.sampled_from(sorted(FIELDS))

    @limits(examples)
    @given(paths, st.binary(max_size=64))
    def any_bytes(path: str, body: bytes) -> None:
        target.post(path, body)

    @limits(examples)
    @given(st.data(), paths)
    def any_values(data: st.DataObject, path: str) -> None:
        names = st.sampled_from(FIELDS[path])
        body = data.draw(st.dictionaries(names, JSON, min_size=1, max_size=len(FIELDS[path])))
        target.check_field(path, body)

    @limits(examples)
    @given(st.lists(TENSOR, min_size=1, max_size=3), TAILS, st.integers(-40, 40))
    def any_tensors(tensors: list[object], tail: bytes, error: int) -> None:
        head = json.dumps({"inputs": tensors}).encode()
        size = len(head) if error > 0 else len(head) + error
        headers = {"Inference-Header-Content-Length": str(size)}
        target.post("/v2/models/reward/infer", head + tail, headers)

    @limits(max(5, examples // 10))
    @given(st.binary(max_size=200), st.booleans())
    def any_http(data: bytes, begins: bool) -> None:
        host, port = target.address.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall((b"POST /v1/rewards HTTP/1.1\r\n" if begins else b"") + data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        target.statuses[0] += 1

    for one in (any_bytes, any_values, any_tensors, any_http):
        one()
    deep = b'{"responses": ' + b"[" * 100_000
    for path in FIELDS:
        target.post(path, deep)
        target.post(path, b"{" + b'"a":' * 50_000 + b"1")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with Threaded() as threaded:
        reward = threaded.serve(reward_service(tiny_reward_model(tmp_path / "reward")))
        policy = threaded.serve(policy_server(tmp_path / "policy"))
        found = threaded.serve(gateway(reward=reward.address, policy=policy.address))
        yield Target(found.address)


def test_gateway_survives_a_sample_of_inputs(target: Target):
    fuzz_with_schema(target, 5, every=3)
    fuzz_without_schema(target, 40)
    assert target.statuses[200] > 5, "some inputs must be valid"
    assert target.statuses[400] > 70
    assert ask(target.address, "GET", "/readyz").status == 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gateway_survives_thousands_of_inputs_without_growing(tmp_path: Path):
    start = Starter(tmp_path)
    try:
        reward = start("reward", tiny_reward_model(tmp_path / "reward"))
        policy = start("policy", tiny_causal_lm(tmp_path / "policy"), **{"policy.serve_initial": "true"})
        addresses = {
            "reward.addresses": f'["{reward.address}"]',
            "policy.addresses": f'["{policy.address}"]',
        }
        process = start("gateway", None, **addresses)
        for one in (reward, policy, process):
            one.wait_for("/readyz")
        target = Target(process.address)
        fuzz_with_schema(target, 60)
        fuzz_without_schema(target, 500)
        measured = psutil.Process(process.popen.pid)
        before = measured.memory_info().rss
        while sum(target.statuses.values()) < 10_000:
            fuzz_with_schema(target, 100)
            fuzz_without_schema(target, 1_200)
        grown = measured.memory_info().rss - before
        assert sum(target.statuses.values()) >= 10_000
        assert grown < 24 << 20, f"{grown >> 10} KiB by {dict(target.statuses)}"
        log = process.log.read_text()
        assert "Traceback" not in log
        answer = ask(process.address, "POST", "/v1/rewards", {"prompt": "w2", "responses": ["w1"]})
        assert answer.status == 200
        connection = http.client.HTTPConnection(process.address, timeout=30)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        connection.close()
        assert process.stop() == 0
    finally:
        start.stop()
