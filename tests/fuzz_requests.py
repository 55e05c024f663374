"""Invalid and valid requests for the gRPC methods of the reward service.

A request is a method and bytes: a message with invalid fields, a message with damaged bytes, arbitrary bytes,
or a valid message. Each is derived from one number, which identifies it when a test fails.
"""

from __future__ import annotations

import random
import struct

import numpy as np
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from fairlead.v1 import reward_service_pb2, tokens_pb2

SCORE = "/fairlead.v1.RewardService/Score"
SCORE_STREAM = "/fairlead.v1.RewardService/ScoreStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
OTHERS = (
    *(f"/inference.GRPCInferenceService/{name}" for name in ("ServerLive", "ServerReady", "ServerMetadata")),
    *(
        f"/inference.GRPCInferenceService/Model{name}"
        for name in ("Ready", "Metadata", "Config", "Statistics")
    ),
    *(f"/inference.GRPCInferenceService/Repository{name}" for name in ("Index", "ModelLoad", "ModelUnload")),
    *(f"/inference.GRPCInferenceService/SystemSharedMemory{name}" for name in ("Status", "Register")),
    "/fairlead.v1.RewardService/GetRewardInfo",
    *(f"/fairlead.v1.RewardAdminService/{name}" for name in ("ListRewardModels", "SetCanaryShare")),
)

_SIZES = (0, 1, 2, 3, -1, -(2**63), 2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1)
_BAD_IDS = (-1, 60, 2**31 - 1, -(2**31))
_GOOD_TEXTS = ("w1", "w1 w2 w3", "<s> w4 </s>", "\x00", "", "\ud7ff\U0010ffff", "ä" * 40)
_BAD_TEXTS = ("w1 " * 200, "x" * 3_000)
_BAD_BYTES = (b"\xff\xfe", b"w1\xc3", b"\xed\xa0\x80")
_PARAMETERS = (
    pb.InferParameter(),
    *(pb.InferParameter(int64_param=number) for number in (0, 1, 3, -1, 2**63 - 1, -(2**63))),
    *(pb.InferParameter(uint64_param=number) for number in (0, 1, 2**64 - 1)),
    pb.InferParameter(string_param="1"),
    pb.InferParameter(double_param=float("nan")),
    pb.InferParameter(bool_param=True),
)
_FLOATS = (0.0, 1.5, float("nan"), float("inf"), float("-inf"))
_CONTENTS = {
    "bytes_contents": (b"w1", b"", *_BAD_BYTES),
    "int64_contents": (1, 5, 59, *_BAD_IDS, 2**63 - 1),
    "int_contents": (1, 5, -1),
    "uint64_contents": (1, 2**64 - 1),
    "fp32_contents": _FLOATS,
    "fp64_contents": _FLOATS,
    "bool_contents": (True, False),
}


class _Maker:
    """Makes the request of one number. `odds` is the probability that a field is invalid."""

    def __init__(self, number: int) -> None:
        self.rng = random.Random(number)
        self.odds = self.rng.choice((0.0, 0.1, 0.5))

    def draws_invalid(self) -> bool:
        return self.rng.random() < self.odds

    def text(self) -> str:
        return self.rng.choice(_BAD_TEXTS if self.draws_invalid() else _GOOD_TEXTS)

    def element(self) -> bytes:
        return self.rng.choice(_BAD_BYTES) if self.draws_invalid() else self.text().encode()

    def ids(self, count: int) -> list[int]:
        return [
            self.rng.choice(_BAD_IDS) if self.draws_invalid() else self.rng.randrange(4, 60)
            for _ in range(count)
        ]

    def score(self) -> reward_service_pb2.ScoreRequest:
        request = reward_service_pb2.ScoreRequest(request_id=self.rng.choice(("", "a", "\x00")))
        request.priority = self.rng.choice((3, -1, 2**31 - 1) if self.draws_invalid() else (0, 1, 2))
        for _ in range(0 if self.draws_invalid() else self.rng.randint(1, 10 if self.draws_invalid() else 4)):
            self._item(request.items.add())
        return request

    def _item(self, item: reward_service_pb2.ScoreItem) -> None:
        kind = (
            "nothing"
            if self.draws_invalid()
            else self.rng.choice(("text", "tokens", "whole_text", "messages"))
        )
        if kind == "text":
            item.text.prompt, item.text.response = self.text(), self.text()
        elif kind == "tokens":
            item.tokens.prompt_token_ids.extend(self.ids(self.rng.randint(0, 5)))
            item.tokens.response_token_ids.extend(
                self.ids(200 if self.draws_invalid() else self.rng.randint(1, 9))
            )
        elif kind == "whole_text":
            item.whole_text = self.text()
        elif kind == "messages" and self.draws_invalid():
            role = self.rng.choice(("user", "root", ""))
            item.text.messages.append(tokens_pb2.Message(role=role, content=self.text()))

    def infer(self) -> pb.ModelInferRequest:
        """Return tensors whose names, types, shapes and contents are consistent or not."""
        request = pb.ModelInferRequest(
            model_name=self.rng.choice(("other", "", "\x00")) if self.draws_invalid() else "reward",
            model_version=self.rng.choice(("1", "\x00")) if self.draws_invalid() else "",
            id=self.rng.choice(("", "a", "\x00")),
        )
        self._parameters(request.parameters, ("priority", "timeout", "sequence_id"))
        raw, rows, width = self.rng.random() < 0.7, self.rng.randint(1, 3), self.rng.randint(1, 4)
        names = self.rng.choice((["sentences"], ["tokens", "sequence_lengths"]))
        if self.draws_invalid():
            names = self.rng.choices(["sentences", "tokens", "sequence_lengths", "texts", ""], k=3)
            names = names[: self.rng.randint(0, 3)]
        for name in names:
            self._tensor(request, name, (rows, width if name == "tokens" else 1), raw=raw)
        if self.draws_invalid():
            request.raw_input_contents.append(self.rng.randbytes(self.rng.randint(0, 20)))
        for name in (
            self.rng.choices(("rewards", "scores", ""), k=2) if self.draws_invalid() else ("rewards",) * raw
        ):
            output = request.outputs.add(name=name)
            self._parameters(output.parameters, ("classification", "binary_data", "shared_memory_region"))
        return request

    def _parameters(self, target: object, names: tuple[str, ...]) -> None:
        if self.draws_invalid():
            target[self.rng.choice(names)].CopyFrom(self.rng.choice(_PARAMETERS))

    def _tensor(self, request: object, name: str, size: tuple[int, int], *, raw: bool) -> None:
        datatype = "BYTES" if name == "sentences" else "INT64"
        shape = list(size)
        if self.draws_invalid():
            datatype = self.rng.choice(("BYTES", "INT64", "INT32", "FP32", "", "\x00"))
        if self.draws_invalid():
            shape = self.rng.choices(_SIZES, k=self.rng.choice((0, 1, 2, 2, 2, 3, 1_000)))
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        self._parameters(tensor.parameters, ("shared_memory_region", "shared_memory_offset", "x"))
        if name == "sentences":
            values = [self.element() for _ in range(size[0])]
            body = b"".join(struct.pack("<I", len(value)) + value for value in values)
        else:
            limit = size[1] if name == "tokens" else 1
            values = self.ids(size[0] * limit) if name == "tokens" else [1] * size[0]
            body = np.array(values, dtype="<i8").tobytes()
        if raw:
            request.raw_input_contents.append(self.damaged(body) if self.draws_invalid() else body)
        if not raw or self.draws_invalid():
            field = self.rng.choice(list(_CONTENTS)) if self.draws_invalid() else ""
            if field:
                getattr(tensor.contents, field).extend(self.rng.choices(_CONTENTS[field], k=3))
            kind = "bytes_contents" if name == "sentences" else "int64_contents"
            getattr(tensor.contents, kind).extend(values)

    def damaged(self, body: bytes) -> bytes:
        """Return the bytes with a few of them changed, removed, repeated or inserted."""
        found = bytearray(body)
        for _ in range(self.rng.randint(1, 3)):
            place = self.rng.randint(0, max(0, len(found) - 1))
            how = self.rng.randrange(4)
            if how == 0 and found:
                found[place] = self.rng.randrange(256)
            elif how == 1:
                del found[place : place + self.rng.randint(1, 8)]
            elif how == 2:
                found[place:place] = self.rng.randbytes(self.rng.randint(1, 6))
            else:
                found += found[place : place + 20]
        return bytes(found)


def call(number: int) -> tuple[str, bytes]:
    """Return the method and the body of the request of a number."""
    maker = _Maker(number)
    method = maker.rng.choice((SCORE, SCORE, SCORE_STREAM, INFER, INFER, INFER, INFER_STREAM, "other"))
    if method == "other":
        return maker.rng.choice(OTHERS), maker.rng.randbytes(maker.rng.randint(0, 20))
    if method in (INFER, INFER_STREAM):
        body = maker.infer().SerializeToString()
    elif method == SCORE:
        body = maker.score().SerializeToString()
    else:
        sequence = maker.rng.choice((0, -1, 2**63 - 1))
        body = reward_service_pb2.ScoreStreamRequest(
            sequence=sequence, request=maker.score()
        ).SerializeToString()
    if maker.odds and maker.rng.random() < 0.2:
        body = maker.damaged(body)
    elif maker.odds and maker.rng.random() < 0.05:
        body = maker.rng.randbytes(maker.rng.randint(0, 64))
    return method, body


calls = st.builds(call, st.integers(0, 2**64 - 1))
"""Strategy that draws requests."""
