"""The Open Inference Protocol over gRPC and HTTP: equal requests have equal answers and equal refusals."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.protobuf import json_format
from grpc import aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from fairlead.errors import HTTP_STATUS
from services.open_inference.versions import number_of
from tests.gateway_world import Gateway, gateway
from tests.tiny import tiny_reward_model
from tests.unit.services.reward.reward_world import World, reward_service

MAX_ROWS = 64
CONTENTS = {
    "BYTES": "bytes_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT64": "uint64_contents",
}


@dataclass
class Request:
    """An inference request in no transport yet."""

    inputs: list[tuple[str, str, list[int], list[Any]]]
    """Name, datatype, shape and elements of each tensor."""
    outputs: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    model: str = "reward"
    version: str = ""
    tensor_parameter: str = ""
    """Name of a parameter of the first input."""
    output_parameter: str = ""
    """Name of a parameter of the first output."""

    def as_grpc(self) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest(model_name=self.model, model_version=self.version, id="7")
        for name, datatype, shape, values in self.inputs:
            tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
            encoded = [value.encode() if isinstance(value, str) else value for value in values]
            if datatype in CONTENTS:
                getattr(tensor.contents, CONTENTS[datatype]).extend(encoded)
        for name in self.outputs:
            request.outputs.add(name=name)
        for name, value in self.parameters.items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
            setattr(request.parameters[name], kind[type(value)], value)
        if self.tensor_parameter:
            request.inputs[0].parameters[self.tensor_parameter].string_param = "x"
        if self.output_parameter:
            request.outputs[0].parameters[self.output_parameter].int64_param = 1
        return request

    def as_json(self) -> dict[str, Any]:
        inputs: list[dict[str, Any]] = [
            {"name": name, "datatype": datatype, "shape": shape, "data": values}
            for name, datatype, shape, values in self.inputs
        ]
        outputs: list[dict[str, Any]] = [{"name": name} for name in self.outputs]
        if self.tensor_parameter:
            inputs[0]["parameters"] = {self.tensor_parameter: "x"}
        if self.output_parameter:
            outputs[0]["parameters"] = {self.output_parameter: 1}
        return {"id": "7", "inputs": inputs, "outputs": outputs, "parameters": self.parameters}

    @property
    def path(self) -> str:
        version = f"/versions/{quote(self.version)}" if self.version else ""
        return f"/v2/models/{quote(self.model)}{version}/infer"


def sentences(*texts: str) -> tuple[str, str, list[int], list[Any]]:
    return ("sentences", "BYTES", [len(texts), 1], list(texts))


def tokens(*ids: int, datatype: str = "INT64") -> tuple[str, str, list[int], list[Any]]:
    return ("tokens", datatype, [1, len(ids)], list(ids))


def lengths(*numbers: int, datatype: str = "INT64") -> tuple[str, str, list[int], list[Any]]:
    return ("sequence_lengths", datatype, [len(numbers), 1], list(numbers))


SCORED = {
    "sentences": Request([sentences("w1 w2", "w3", "<s> w4 </s>")]),
    "flat sentences": Request([("sentences", "BYTES", [2], ["w1 w2", "w3"])]),
    "tokens": Request([("tokens", "INT64", [2, 3], [5, 6, 7, 8, -1, 99]), lengths(3, 1)]),
    "narrow tokens": Request([tokens(5, 6, 7, datatype="INT32"), lengths(3, datatype="UINT8")]),
    "wide tokens": Request([tokens(5, 6, 7, datatype="UINT64"), lengths(3)]),
    "flat lengths": Request([tokens(5, 6, 7), ("sequence_lengths", "INT64", [1], [3])]),
    "output and parameters": Request(
        [sentences("w1 w2")], outputs=["rewards"], parameters={"priority": 2, "timeout": 20_000_000}
    ),
    "alias": Request([sentences("w1 w2")], model="judge"),
}

REFUSED = {
    "no inputs": Request([]),
    "unknown input": Request([("texts", "BYTES", [1, 1], ["w1"])]),
    "input twice": Request([sentences("w1"), sentences("w1")]),
    "all inputs": Request([sentences("w1"), tokens(5), lengths(1)]),
    "tokens without lengths": Request([tokens(5)]),
    "lengths without tokens": Request([lengths(5)]),
    "wrong datatype": Request([("sentences", "INT64", [1, 1], [5])]),
    "unknown datatype": Request([("tokens", "FP32", [1, 1], []), lengths(1)]),
    "negative dimension": Request([("sentences", "BYTES", [-1, 1], ["w1"])]),
    "dimension 0": Request([("sentences", "BYTES", [0, 1], ["w1"])]),
    "wide sentences": Request([("sentences", "BYTES", [1, 2], ["w1", "w2"])]),
    "three dimensions": Request([("tokens", "INT64", [1, 1, 1], [5]), lengths(1)]),
    "tokens in one dimension": Request([("tokens", "INT64", [2], [5, 6]), lengths(2)]),
    "too many rows": Request([sentences(*["w1"] * (MAX_ROWS + 1))]),
    "far too many rows": Request([("sentences", "BYTES", [2**40, 1], ["w1"])]),
    "fewer texts than rows": Request([("sentences", "BYTES", [2, 1], ["w1"])]),
    "fewer ids than the shape": Request([("tokens", "INT64", [1, 3], [5, 6]), lengths(2)]),
    "rows differ": Request([tokens(5, 6), lengths(1, 2)]),
    "length 0": Request([tokens(5, 6), lengths(0)]),
    "length beyond the row": Request([tokens(5, 6), lengths(3)]),
    "length beyond the model": Request([tokens(*[5] * 200), lengths(129)]),
    "id beyond the vocabulary": Request([tokens(5, 60), lengths(2)]),
    "negative id": Request([tokens(-1, 6), lengths(2)]),
    "number beyond int64": Request([tokens(2**64 - 1, datatype="UINT64"), lengths(1)]),
    "long text": Request([sentences("w1", "x" * 1001)]),
    "long sequence": Request([sentences("w1", "w1 " * 200)]),
    "unknown output": Request([sentences("w1")], outputs=["scores"]),
    "output twice": Request([sentences("w1")], outputs=["rewards", "rewards"]),
    "classification": Request([sentences("w1")], outputs=["rewards"], output_parameter="classification"),
    "output in shared memory": Request(
        [sentences("w1")], outputs=["rewards"], output_parameter="shared_memory_region"
    ),
    "input in shared memory": Request([sentences("w1")], tensor_parameter="shared_memory_region"),
    "negative priority": Request([sentences("w1")], parameters={"priority": -1}),
    "priority as text": Request([sentences("w1")], parameters={"priority": "1"}),
    "boolean timeout": Request([sentences("w1")], parameters={"timeout": True}),
    "timeout as decimal": Request([sentences("w1")], parameters={"timeout": 1.5}),
    "unknown model": Request([sentences("w1")], model="other"),
    "unknown version": Request([sentences("w1")], version="2"),
}


@dataclass
class Both:
    """One reward service, reached over gRPC and through a gateway."""

    stub: Any
    http: Gateway
    world: World

    async def grpc_outcome(self, request: Request) -> tuple[int, Any]:
        """HTTP status of the same meaning, and response or error."""
        try:
            return 200, await self.stub.ModelInfer(request.as_grpc(), timeout=30)
        except aio.AioRpcError as error:
            return HTTP_STATUS[error.code()], error.details()

    async def http_outcome(self, request: Request) -> tuple[int, Any]:
        answer = await self.http.post(request.path, request.as_json())
        return answer.status, answer.json if answer.status == 200 else answer.error


@asynccontextmanager
async def both(folder):
    settings = {"batching": {"max_items": MAX_ROWS}, "max_text_bytes": 1000, "aliases": ["judge"]}
    async with (
        reward_service(folder, calibration_temperature=1.5, **settings) as world,
        aio.insecure_channel(world.address) as channel,
        gateway(
            reward=world.address,
            sections={"reward.batching.max_items": MAX_ROWS, "reward.aliases": ["judge"]},
        ) as http,
    ):
        yield Both(pb_grpc.GRPCInferenceServiceStub(channel), http, world)


@pytest.fixture
async def served(tmp_path_factory):
    async with both(tiny_reward_model(tmp_path_factory.mktemp("reward"))) as found:
        yield found


def as_json(message: Any) -> Any:
    """A message as HTTP would send it: 64-bit numbers are numbers, and nothing is left out."""
    found = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return numbers(found)


def numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [numbers(each) for each in value]
    return int(value) if isinstance(value, str) and value.lstrip("-").isdecimal() else value


def within(part: Any, whole: Any) -> bool:
    """Whether everything that HTTP sends is in the gRPC message, which has more fields."""
    if isinstance(part, dict):
        return all(key in whole and within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(within, part, whole))
    return part == whole


@pytest.mark.parametrize("name", SCORED)
async def test_scores_and_parameters_are_equal(served: Both, name):
    request = SCORED[name]
    status, over_grpc = await served.grpc_outcome(request)
    assert status == 200, over_grpc
    status, over_http = await served.http_outcome(request)
    assert status == 200, over_http
    (output,) = over_grpc.outputs
    (sent,) = over_http["outputs"]
    assert (output.name, output.datatype, list(output.shape)) == (
        sent["name"],
        sent["datatype"],
        sent["shape"],
    )
    assert list(output.contents.fp32_contents) == pytest.approx(sent["data"], abs=1e-6)
    for key in ("model_name", "model_version", "id"):
        assert getattr(over_grpc, key) == over_http[key]
    parameters = {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in over_grpc.parameters.items()
    }
    assert parameters.keys() == over_http["parameters"].keys()
    for key in ("model_version", "num_tokens", "calibration_temperature"):
        assert parameters[key] == over_http["parameters"][key]


async def test_refusals_are_equal(served: Both):
    """Every refusal has the same status and the same sentence."""
    outcomes = {
        name: (await served.grpc_outcome(request), await served.http_outcome(request))
        for name, request in REFUSED.items()
    }
    different = {name: pair for name, pair in outcomes.items() if pair[0] != pair[1]}
    assert not different
    assert {status for (status, _), _ in outcomes.values()} == {400, 404}


async def test_metadata_and_configuration_are_equal(served: Both):
    stub, http, version = served.stub, served.http, served.world.version
    for asked in ("", version):
        path = f"/v2/models/reward/versions/{asked}" if asked else "/v2/models/reward"
        metadata = (await http.get(path)).json
        assert numbers(metadata) == as_json(
            await stub.ModelMetadata(pb.ModelMetadataRequest(name="reward", version=asked))
        )
        config = (await http.get(f"{path}/config")).json
        over_grpc = await stub.ModelConfig(pb.ModelConfigRequest(name="reward", version=asked))
        assert within(numbers(config), as_json(over_grpc.config))
        assert {key: value["string_value"] for key, value in config["parameters"].items()} == {
            "model_id": served.world.scoring.info.model.model_id,
            "model_version": version,
            "tokenizer_fingerprint": served.world.scoring.info.model.tokenizer_fingerprint,
            "vocabulary_size": "60",
            "max_sequence_tokens": "128",
            "calibration_temperature": "1.5",
        }
    index = (await http.post("/v2/repository/index", {})).json
    assert numbers(index) == as_json(await stub.RepositoryIndex(pb.RepositoryIndexRequest()))["models"]
    server = (await http.get("/v2")).json
    metadata = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert (server["name"], server["version"]) == (metadata.name, metadata.version)
    assert set(server["extensions"]) == {*metadata.extensions, "binary_tensor_data"}


async def test_statistics_count_the_same_requests(served: Both):
    for request in (*SCORED.values(), REFUSED["length 0"], REFUSED["long text"], REFUSED["no inputs"]):
        await served.grpc_outcome(request)
        await served.http_outcome(request)
    found = await served.stub.ModelStatistics(pb.ModelStatisticsRequest(name="reward"))
    (over_grpc,) = as_json(found)["model_stats"]
    (over_http,) = numbers((await served.http.get("/v2/models/reward/stats")).json)["model_stats"]
    for key in ("name", "version", "inference_count", "execution_count"):
        assert over_grpc[key] == over_http[key]
    assert over_http["inference_count"] == sum(request.inputs[0][2][0] for request in SCORED.values())
    for key, durations in over_http["inference_stats"].items():
        assert over_grpc["inference_stats"][key]["count"] == durations["count"], key
    assert over_http["inference_stats"]["fail"]["count"] == 3
    for key in ("success", "compute_infer", "compute_input"):
        assert over_http["inference_stats"][key]["ns"] > 0
        assert over_grpc["inference_stats"][key]["ns"] > 0


async def test_unsupported_parts_are_refused_alike(served: Both):
    stub = served.stub
    calls = {
        "repository/models/reward/load": (
            stub.RepositoryModelLoad,
            pb.RepositoryModelLoadRequest(model_name="reward"),
        ),
        "systemsharedmemory/region/a/register": (
            stub.SystemSharedMemoryRegister,
            pb.SystemSharedMemoryRegisterRequest(name="a"),
        ),
        "cudasharedmemory/region/a/register": (
            stub.CudaSharedMemoryRegister,
            pb.CudaSharedMemoryRegisterRequest(name="a"),
        ),
        "trace/setting": (stub.TraceSetting, pb.TraceSettingRequest()),
        "logging": (stub.LogSettings, pb.LogSettingsRequest()),
    }
    for path, (method, request) in calls.items():
        with pytest.raises(aio.AioRpcError) as error:
            await method(request, timeout=30)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        answer = await served.http.post(f"/v2/{path}", {})
        assert (answer.status, answer.error) == (501, error.value.details())


async def test_both_versions_of_a_canary_are_listed_and_score_what_is_asked_of_them(
    served: Both, tmp_path_factory
):
    stub, http, scoring = served.stub, served.http, served.world.scoring
    newer = tiny_reward_model(tmp_path_factory.mktemp("canary"), seed=9)
    await scoring.load(str(newer), canary_share=0.5)
    versions = [info.model_version for info in scoring.models]
    numbers_of = [number_of(version) for version in versions]

    async with asyncio.timeout(30):
        # The gateway asks for the served models at an interval.
        while (await http.get("/v2/models/reward")).json["versions"] != numbers_of:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    index = (await http.post("/v2/repository/index", {})).json
    assert numbers(index) == as_json(await stub.RepositoryIndex(pb.RepositoryIndexRequest()))["models"]
    expected = {}
    for version, number in zip(versions, numbers_of, strict=True):
        for asked in (version, number):
            request = Request([sentences("w1 w2 w3")], version=asked)
            _, over_grpc = await served.grpc_outcome(request)
            expected[number] = over_grpc.outputs[0].contents.fp32_contents[0]
            for at in range(10):
                answer = await http.post(request.path, request.as_json(), x_request_id=f"r{at}")
                assert answer.json["model_version"] == number
                assert answer.json["outputs"][0]["data"] == pytest.approx([expected[number]], abs=1e-6)
            path = request.path.removesuffix("/infer")
            for part in ("", "/ready", "/config", "/stats"):
                assert (await http.get(path + part)).status == 200, part
        config = (await http.get(f"/v2/models/reward/versions/{number}/config")).json
        assert config["parameters"]["model_version"]["string_value"] == version
    assert len(set(expected.values())) == 2
    ids = {
        body["model_version"]: body["model"]
        for at in range(20)
        if (
            body := (
                await http.post("/v1/rewards", {"prompt": "a", "responses": ["b"]}, x_request_id=f"r{at}")
            ).json
        )
    }
    assert ids == {info.model_version: info.model.model_id for info in scoring.models}
    await scoring.abandon()
    gone = Request([sentences("w1")], version=versions[1])
    status, _ = await served.http_outcome(gone)
    assert status == 404
