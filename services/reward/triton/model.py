"""A reward model for Triton's Python backend: the `model.py` that `fairlead export-triton` writes.

The file is copied unchanged. It imports nothing from Fairlead but the copy of reading.py next to it; the
server needs only torch and transformers. Scores equal those of Fairlead's own service: the hidden state at
each row's last real token, a float32 head and its bias; for an encoder, its own forward pass.

The dynamic batcher merges requests of any lengths, because ragged batching is allowed.
Shapes: R rows of all requests, B rows of a forward pass, S tokens of a request, T positions.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from transformers import AutoModelForSequenceClassification, AutoTokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _InvalidRequest(Exception):
    """A request that cannot be scored. The other requests of its batch are scored."""


class _Member:
    """One model of the ensemble, with its head."""

    def __init__(self, folder: str, *, dtype: str, device: torch.device, is_encoder: bool) -> None:
        self.model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=_DTYPES[dtype], output_loading_info=True, trust_remote_code=False
        )
        if report["missing_keys"]:
            raise ValueError(f"{folder} lacks the weights {sorted(report['missing_keys'])[:5]}")
        self.model.eval().to(device)
        self.is_encoder = is_encoder
        if not is_encoder:
            layer = self.model.score if hasattr(self.model, "score") else self.model.classifier
            self.weight_H = layer.weight[0].detach().float()
            self.bias = float(getattr(self.model.config, "fairlead_reward_bias", 0.0))
            self.bias += 0.0 if layer.bias is None else float(layer.bias.float())

    def scores(self, tokens_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Return float32 scores [B]."""
        mask_BT = (torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B[:, None]).long()
        if self.is_encoder:
            logits_B1: torch.Tensor = self.model(input_ids=tokens_BT, attention_mask=mask_BT).logits
            return logits_B1[:, 0].float()
        hidden_BTH = self.model.base_model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False)[0]
        rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
        scores_B: torch.Tensor = hidden_BTH[rows_B, lengths_B - 1].float() @ self.weight_H + self.bias
        return scores_B


class TritonPythonModel:
    """The class that the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the models that config.pbtxt names. An exception keeps the model from becoming ready."""
        written = json.loads(args["model_config"])["parameters"]
        self.settings = {key: value["string_value"] for key, value in written.items()}
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        # On a CPU padding quickly costs more than a larger batch saves (benchmarks/triton_baselines.py).
        self.min_length_ratio = 0.5 if on_gpu else 0.9
        here = os.path.join(args["model_repository"], args["model_version"])
        folders = [os.path.join(here, name) for name in self.settings["members"].split(",")]
        encoder = self.settings["reads"] == "encoder"
        self.members = [
            _Member(folder, dtype=self.settings["dtype"], device=self.device, is_encoder=encoder)
            for folder in folders
        ]
        self.rules = _reading(here).ReadingRules.from_json(self.settings["reading_rules"])
        self.tokenizer = AutoTokenizer.from_pretrained(folders[0], trust_remote_code=False)
        self.vocabulary = self.members[0].model.get_input_embeddings().num_embeddings

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response per request of a merged batch; an invalid request fails without the others."""
        read: list[list[list[int]] | _InvalidRequest] = []
        for request in requests:
            try:
                read.append(self._rows(request))
            except _InvalidRequest as error:
                read.append(error)
        rows = [row for found in read if isinstance(found, list) for row in found]
        scores = iter(self._scores(rows))
        return [
            _error_response(found)
            if isinstance(found, _InvalidRequest)
            else _response(found, [next(scores) for _ in found])
            for found in read
        ]

    def _rows(self, request: Any) -> list[list[int]]:  # noqa: ANN401 - the backend's own type
        """Return the ids of each row of a request, checked."""
        sentences = pb_utils.get_input_tensor_by_name(request, "sentences")
        tokens = pb_utils.get_input_tensor_by_name(request, "tokens")
        if (sentences is None) == (tokens is None):
            raise _InvalidRequest("inputs: got both or neither, allowed: `sentences`, or `tokens`")
        if sentences is not None:
            rows = [self._encode(index, text) for index, text in enumerate(sentences.as_numpy().reshape(-1))]
        else:
            tokens_BS = tokens.as_numpy()
            given = pb_utils.get_input_tensor_by_name(request, "sequence_lengths")
            width = tokens_BS.shape[1]
            lengths = [width] * len(tokens_BS) if given is None else given.as_numpy().reshape(-1).tolist()
            if len(lengths) != len(tokens_BS) or not all(1 <= length <= width for length in lengths):
                allowed = f"one of 1 to {width} for each row of `tokens`"
                raise _InvalidRequest(f"sequence_lengths: got {lengths[:8]}, allowed: {allowed}")
            rows = [row[:length].tolist() for row, length in zip(tokens_BS, lengths, strict=True)]
            if self.settings["append_eos"] == "true":
                rows = [list(self.rules.finish(row, append=False)) for row in rows]
        limit = int(self.settings["max_sequence_tokens"])
        for index, row in enumerate(rows):
            if not 1 <= len(row) <= limit:
                raise _InvalidRequest(f"tokens[{index}]: got {len(row)} tokens, allowed: 1 to {limit} tokens")
            if min(row) < 0 or max(row) >= self.vocabulary:
                bad = next(token for token in row if not 0 <= token < self.vocabulary)
                raise _InvalidRequest(
                    f"tokens[{index}]: got id {bad}, allowed: ids from 0 to {self.vocabulary - 1}"
                )
        return rows

    def _encode(self, index: int, text: bytes) -> list[int]:
        """Return the ids of a whole text: with special tokens, one BOS, and the end of an answer."""
        try:
            content = text.decode()
        except UnicodeDecodeError as error:
            raise _InvalidRequest(f"sentences[{index}]: got {error.reason}, allowed: UTF-8") from None
        ids = self.rules.whole_ids(content, self._tokenize)
        return list(self.rules.finish(ids, append=True) if self.settings["append_eos"] == "true" else ids)

    def _tokenize(self, text: str, special: bool) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return [int(token) for token in ids]

    @torch.inference_mode()
    def _scores(self, rows: Sequence[list[int]]) -> list[float]:
        found = [0.0] * len(rows)
        for batch in self._batches([len(row) for row in rows]):
            lengths_B = torch.tensor([len(rows[index]) for index in batch])
            tokens_BT = torch.zeros(len(batch), int(lengths_B.max()), dtype=torch.long)
            for place, index in enumerate(batch):
                tokens_BT[place, : len(rows[index])] = torch.tensor(rows[index])
            scores_MB = torch.stack(
                [
                    member.scores(tokens_BT.to(self.device), lengths_B.to(self.device))
                    for member in self.members
                ]
            )
            for index, score in zip(batch, self._combine(scores_MB).tolist(), strict=True):
                found[index] = score
        return found

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the rows of each forward pass, as `packing` says.

        `sorted`: rows of similar length, with the padding within the budget. `arrival`: all rows that the
        batcher merged, padded to the longest. `each`: one row at a time.
        """
        packing, budget = self.settings["packing"], int(self.settings["max_batch_tokens"])
        if packing == "arrival":
            yield from [list(range(len(lengths)))] if lengths else []
            return
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
            longest = lengths[batch[0]] if batch else 0
            similar = packing == "sorted" and (
                longest <= 32 or lengths[index] >= self.min_length_ratio * longest
            )
            if batch and not (similar and (len(batch) + 1) * longest <= budget):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _combine(self, scores_MB: torch.Tensor) -> torch.Tensor:
        rule = self.settings["ensemble"]
        if rule == "min":
            return scores_MB.min(dim=0).values
        mean_B = scores_MB.mean(dim=0)
        if rule == "mean":
            return mean_B
        return mean_B - float(self.settings["ensemble_std_weight"]) * scores_MB.std(dim=0, correction=0)


def _reading(folder: str) -> Any:  # noqa: ANN401 - a module
    """Return the module reading.py of the folder."""
    spec = importlib.util.spec_from_file_location("fairlead_reading", os.path.join(folder, "reading.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def _response(rows: Sequence[list[int]], scores: Sequence[float]) -> Any:  # noqa: ANN401 - the backend's own
    rewards = np.array(scores, dtype=np.float32).reshape(-1, 1)
    counts = np.array([len(row) for row in rows], dtype=np.int64).reshape(-1, 1)
    tensors = [pb_utils.Tensor("rewards", rewards), pb_utils.Tensor("num_tokens", counts)]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _error_response(invalid: _InvalidRequest) -> Any:  # noqa: ANN401 - the backend's own type
    error = pb_utils.TritonError(str(invalid), pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=error)
