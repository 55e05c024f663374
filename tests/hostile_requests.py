"""Requests that are large, deep or numerous, for every route and RPC; each must be refused at little cost."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as inference

from fairlead.v1 import (
    policy_service_pb2,
    reference_service_pb2,
    reward_admin_service_pb2,
    reward_service_pb2,
    weight_service_pb2,
)
from fairlead.v1.tokens_pb2 import WeightVersion

MANY = 1_000_000
REWARD = "/fairlead.v1.RewardService"
INFER = "/v2/models/reward/infer"


@dataclass(frozen=True)
class Request:
    """One request."""

    name: str
    path: str
    """Path of a route, or full name of an RPC."""
    make: Callable[[], bytes]
    """Returns the body; a function, since all bodies together would not fit in memory."""
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def encoded(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def turns(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "w1"}] * count


def raw(text: str, count: int, *, begin: str = "", end: str = "") -> Callable[[], bytes]:
    """Return a function that makes a body of one text repeated."""

    def make() -> bytes:
        return (begin + text * count + end).encode()

    return make


ANY_JSON = {
    "deep": raw("[", 4 * MANY, begin='{"items":'),
    "keys": lambda: encoded({f"key{number}": 1 for number in range(MANY // 2)}),
    "empty lists": raw("[],", 4 * MANY, begin='{"items":[', end="[]]}"),
    "empty objects": raw("{},", 4 * MANY, begin='{"items":[', end="{}]}"),
    "nulls": raw("null,", 2 * MANY, begin="[", end="null]"),
    "numbers": raw("1,", 8 * MANY, begin='{"input":[', end="1]}"),
    "escapes": raw('\\"', 8 * MANY, begin='{"prompt":"', end='","x":1}'),
    "code points": raw("\\u00e9", 2 * MANY, begin='{"prompt":"', end='","x":1}'),
    "commas and quotes": lambda: encoded({"prompt": '",' * (4 * MANY), "x": 1}),
    "one text": raw("a", 15 * MANY, begin='{"model":"', end='"}'),
    "one key": raw("a", 15 * MANY, begin='{"', end='":1}'),
    "one number": raw("1", 15 * MANY, begin='{"priority":', end="}"),
    "unclosed text": raw("a", 15 * MANY, begin='{"prompt":"'),
    "spaces": raw(" ", 15 * MANY),
    "letters": raw("a", 15 * MANY),
    "not UTF-8": lambda: b'{"prompt":"' + b"\xff" * (15 * MANY) + b'"}',
    "too large": raw("a", 17 * MANY),
}
"""For every route with a JSON body."""

ROUTES = (
    "/v1/rewards",
    "/v1/rewards:rank",
    "/v1/rewards:best-of-n",
    "/get_reward",
    "/classify",
    "/v1/embeddings",
)
OTHER_ROUTES = ("/v1/chat/completions", INFER, "/v2/repository/index")


def http_requests() -> Iterator[Request]:
    """Return every request to the gateway."""
    for path in (*ROUTES, *OTHER_ROUTES):
        for name, make in ANY_JSON.items():
            yield Request(name, path, make)
    for path in ROUTES[:3]:
        yield Request("responses", path, lambda: encoded({"prompt": "w1", "responses": ["w2"] * MANY}))
        yield Request("turns", path, lambda: encoded({"prompt": turns(MANY // 4), "responses": ["w2"]}))
        yield Request("invalid turns", path, lambda: encoded({"prompt": [{}] * 4_000, "responses": ["w2"]}))
    path = "/v1/rewards"
    yield Request("items", path, lambda: encoded({"items": [{"prompt": "w1", "response": "w2"}] * 300_000}))
    conversation = {"messages": [*turns(19), {"role": "assistant", "content": "w2"}]}
    yield Request(
        "conversations", path, lambda: encoded({"items": [conversation] * 900 + [{"messages": turns(2)}]})
    )
    yield Request("invalid items", path, lambda: encoded({"items": [{"prompt": 1}] * 1_000}))
    yield Request("queries", "/get_reward", lambda: encoded({"query": ["w1"] * MANY}))
    yield Request("labels", "/get_reward", lambda: encoded({"query": ["w1"], "labels": [{}] * MANY}))
    yield Request("texts", "/classify", lambda: encoded({"input": ["w1"] * MANY}))
    yield Request("ids", "/classify", lambda: encoded({"input": [[1] * 100] * 1_000 + [[-1]]}))
    yield Request("rows of ids", "/classify", lambda: encoded({"input": [[1]] * MANY}))
    yield Request("messages", "/v1/chat/completions", lambda: encoded({"messages": turns(300_000)}))
    part = {"type": "text", "text": "w1"}
    parts = [{"role": "user", "content": [part] * 300_000}]
    yield Request("parts", "/v1/chat/completions", lambda: encoded({"messages": parts}))
    tools = [{}] * MANY
    yield Request("tools", "/v1/chat/completions", lambda: encoded({"messages": turns(1), "tools": tools}))
    yield from _http_inference()
    small = encoded({"prompt": "w1", "responses": ["w2"] * MANY})
    gzipped = {"content-encoding": "gzip"}
    yield Request("gzip of responses", path, lambda: gzip.compress(small), gzipped)
    yield Request("gzip bomb", path, lambda: gzip.compress(bytes(200 << 20)), gzipped)
    long = "x" * 60_000
    for target in ("/v1/models", "/healthz", "/nothing", f"/v2/models/{long}", f"/{long}"):
        yield Request(f"a body for {target[:20]}", target, raw("a", 15 * MANY), method="GET")


def _http_inference() -> Iterator[Request]:
    def tensor(name: str, datatype: str, shape: list[int], data: object) -> dict[str, object]:
        return {"name": name, "datatype": datatype, "shape": shape, "data": data}

    texts = tensor("sentences", "BYTES", [MANY, 1], ["w1"] * MANY)
    yield Request("sentences", INFER, lambda: encoded({"inputs": [texts]}))
    lengths = tensor("sequence_lengths", "INT64", [1_000, 1], [100] * 1_000)
    ids = tensor("tokens", "INT64", [1_000, 100], [[1] * 100] * 999 + [[9_999_999] * 100])
    yield Request("ids out of range", INFER, lambda: encoded({"inputs": [ids, lengths]}))
    yield Request("inputs", INFER, lambda: encoded({"inputs": [{}] * MANY}))
    yield Request("outputs", INFER, lambda: encoded({"inputs": [], "outputs": [{"name": "x"}] * 300_000}))
    yield Request("shape", INFER, lambda: encoded({"inputs": [tensor("tokens", "INT64", [1] * MANY, [])]}))
    binary = {"name": "tokens", "datatype": "INT8", "shape": [1_000, 15_000]}
    binary["parameters"] = {"binary_data_size": 15 * MANY}
    widths = tensor("sequence_lengths", "INT64", [1_000, 1], [100] * 999 + [101])
    head = encoded({"inputs": [binary, widths]})
    yield Request(
        "binary ids",
        INFER,
        lambda: head + b"\x7f" * (15 * MANY),
        {"inference-header-content-length": str(len(head))},
    )


def _field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field."""
    size = len(content)
    length = bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + content


ANY_MESSAGE = {
    "empty fields": lambda: b"\x0a\x00" * (7 * MANY),
    "unknown fields": lambda: b"\x78\x01" * (7 * MANY),
    "unknown text": lambda: _field(15, b"a" * (15 * MANY)),
    "deep": lambda: b"\x0a\x7f" * (7 * MANY),
    "first text": lambda: _field(1, b"a" * (15 * MANY)),
    "second text": lambda: _field(2, b"a" * (15 * MANY)),
    "zeros": lambda: bytes(15 * MANY),
    "ones": lambda: b"\xff" * (15 * MANY),
}
"""For every RPC."""


def _methods(*services: ServiceDescriptor) -> tuple[str, ...]:
    return tuple(f"/{service.full_name}/{method.name}" for service in services for method in service.methods)


def _service(file: FileDescriptor, name: str) -> ServiceDescriptor:
    return file.services_by_name[name]


RPCS = {
    "reward": _methods(
        _service(reward_service_pb2.DESCRIPTOR, "RewardService"),
        _service(reward_admin_service_pb2.DESCRIPTOR, "RewardAdminService"),
        _service(inference.DESCRIPTOR, "GRPCInferenceService"),
        _service(health_pb2.DESCRIPTOR, "Health"),
    ),
    "reference": _methods(_service(reference_service_pb2.DESCRIPTOR, "ReferenceService")),
    "policy": _methods(_service(policy_service_pb2.DESCRIPTOR, "PolicyService")),
    "weights": _methods(_service(weight_service_pb2.DESCRIPTOR, "WeightService")),
}
"""All methods by the service that serves them."""
STREAMS = ("ScoreStream", "ModelStreamInfer")
"""RPCs whose requests are a stream."""
RESPONSE_STREAMS = ("GenerateBatch", "GenerateStream", "FetchShard", "Watch")
"""RPCs with one request and a stream of responses."""


def grpc_requests() -> Iterator[tuple[str, Request]]:
    """Return every RPC, with the service that it is for."""
    for service, methods in RPCS.items():
        for method in methods:
            for name, make in ANY_MESSAGE.items():
                yield service, Request(name, method, make)
    yield from (("reward", request) for request in _score_requests())
    pb = reference_service_pb2
    method = "/fairlead.v1.ReferenceService/LogProbs"
    row = pb.LogProbsSequence(prompt_token_ids=[1], response_token_ids=[1])
    rows = pb.LogProbsRequest(sequences=[row] * MANY, temperature=1).SerializeToString
    yield "reference", Request("sequences", method, rows)
    ids = pb.LogProbsSequence(prompt_token_ids=[1], response_token_ids=[1] * 15 * MANY)
    yield "reference", Request("ids", method, pb.LogProbsRequest(sequences=[ids]).SerializeToString)
    policy = policy_service_pb2.GenerateRequest
    method = "/fairlead.v1.PolicyService/Generate"
    tokens = policy(num_samples=1)
    tokens.tokens.token_ids.extend([1] * 15 * MANY)
    tokens.sampling.max_new_tokens = 1
    yield "policy", Request("ids", method, tokens.SerializeToString)
    talk = policy(num_samples=1)
    for _ in range(MANY // 2):
        talk.conversation.messages.add(role="user", content="w1")
    talk.sampling.max_new_tokens = 1
    yield "policy", Request("turns", method, talk.SerializeToString)
    stops = policy(text="w1", num_samples=1)
    stops.sampling.stop_strings.extend(["w1"] * MANY)
    yield "policy", Request("stop strings", method, stops.SerializeToString)
    many = policy_service_pb2.GenerateBatchRequest(requests=[policy(num_samples=1)] * MANY)
    yield "policy", Request("requests", "/fairlead.v1.PolicyService/GenerateBatch", many.SerializeToString)
    yield from (("weights", request) for request in _weight_requests())


def _weight_requests() -> Iterator[Request]:
    pb = weight_service_pb2
    find = "/fairlead.v1.WeightService/FindWeightSource"
    latest = "/fairlead.v1.WeightService/GetLatestManifest"
    for number in range(2):
        name = "x" * (15 * MANY) if number else "a"
        held = [WeightVersion(incarnation=1, update=1)] * (1 if number else MANY)
        replica = pb.WeightReplica(replica_id="a", relay_address=name, versions=held)
        what = "address" if number else "versions"
        yield Request(what, latest, pb.GetLatestManifestRequest(replica=replica).SerializeToString)
        yield Request(what, find, pb.FindWeightSourceRequest(replica=replica).SerializeToString)
    failed = [pb.FailedSource(relay_address="a:1", failure=pb.SOURCE_FAILURE_BROKEN)] * MANY
    replica = pb.WeightReplica(replica_id="a")
    yield Request(
        "failed", find, pb.FindWeightSourceRequest(replica=replica, failed=failed).SerializeToString
    )


def _score_requests() -> Iterator[Request]:
    pb = reward_service_pb2
    score = f"{REWARD}/Score"
    whole = pb.ScoreItem(whole_text="w1")
    yield Request("items", score, pb.ScoreRequest(items=[whole] * MANY).SerializeToString)
    ids = pb.ScoreItem(tokens=pb.TokenPair(response_token_ids=[1] * 15 * MANY))
    yield Request("ids", score, pb.ScoreRequest(items=[ids]).SerializeToString)
    pair = pb.TextPair(response="w1")
    for _ in range(MANY // 2):
        pair.messages.add(role="user", content="w1")
    yield Request("turns", score, pb.ScoreRequest(items=[pb.ScoreItem(text=pair)]).SerializeToString)
    del pair.messages[4_000:]
    talks = pb.ScoreRequest(items=[pb.ScoreItem(text=pair)] * 8).SerializeToString
    yield Request("conversations", score, talks)
    load = reward_admin_service_pb2.LoadRewardModelRequest(path="x" * 20_000).SerializeToString
    yield Request("path", "/fairlead.v1.RewardAdminService/LoadRewardModel", load)
    infer = "/inference.GRPCInferenceService/ModelInfer"
    request = inference.ModelInferRequest(model_name="reward")
    sentences = request.inputs.add(name="sentences", datatype="BYTES", shape=[MANY, 1])
    sentences.contents.bytes_contents.extend([b"w1"] * MANY)
    yield Request("sentences", infer, request.SerializeToString)
    parts = inference.ModelInferRequest(model_name="reward", raw_input_contents=[b"w1"] * MANY)
    yield Request("raw contents", infer, parts.SerializeToString)
    yield Request(
        "model name", infer, inference.ModelInferRequest(model_name="x" * 15 * MANY).SerializeToString
    )
