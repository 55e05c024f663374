"""`python -m services.reward.triton.export MODEL DIR`: write a reward model into a Triton model repository.

`fairlead export-triton` starts it. It loads the model as the reward service does, with the same errors. It
writes `DIR/<name>/`: config.pbtxt (Python backend, ragged batching), `1/model.py` with the copy of reading.py
that it imports, the model's folder and a README; all of it or nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from transformers.utils import logging as transformers_logging

from fairlead import log
from fairlead.config.base import DType
from fairlead.config.serving import RewardSection
from fairlead.data import reading
from fairlead.data.control import reading_rules
from fairlead.errors import ConfigError, FairleadError, exit_code
from fairlead.nn import adapters
from fairlead.nn.ensemble import RewardEnsemble, load_ensemble, member_paths
from fairlead.nn.loading import check_vocabulary, load_tokenizer, max_sequence_tokens, tokenizer_fingerprint
from fairlead.nn.reward_model import RewardModel

PackingRule = Literal["sorted", "arrival", "each"]
"""How the exported model splits a merged batch into forward passes; see model.py in this folder."""

_MODEL_FILE = Path(__file__).with_name("model.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonExport:
    """The model to export, and how Triton serves it."""

    model: str
    """Folder or hub id of a reward model or an ensemble."""
    target: Path
    """Triton's model repository; it may hold other models."""
    name: str = "reward"
    """Name of the model in the repository."""
    dtype: DType = "float32"
    """Floating-point type in which the model's body computes."""
    max_batch_size: int = 64
    """Maximum number of sequences that Triton merges into one call."""
    max_batch_tokens: int = 8_192
    """Maximum number of tokens of one forward pass, padding included."""
    packing: PackingRule = "sorted"
    """How a merged batch is split into forward passes."""
    ragged: bool = True
    """Whether Triton may merge sequences of different lengths, rather than equal shapes only."""
    link: bool = False
    """Whether to link to the model's folder instead of copying it."""
    force: bool = False
    """Whether to replace an earlier export of this name."""


def export(request: TritonExport) -> Path:
    """Write the model's folder into the repository; return its path.

    Raises:
        ConfigError: the name or the target is not allowed.
        ModelLoadError: the model cannot be loaded or is not a reward model.
        FairleadError: writing to the disk fails.
    """
    target = _target(request)
    section = RewardSection(device="cpu", dtype=request.dtype)
    ensemble = load_ensemble(request.model, section)
    tokenizer = load_tokenizer(member_paths(request.model)[0])
    first = ensemble.members[0]
    check_vocabulary(request.model, first.model, tokenizer)
    limit = max_sequence_tokens(first.model, 0)
    if first.is_encoder:
        limit = min(limit, tokenizer.model_max_length)
    rules = reading_rules(tokenizer, trained_here=first.is_ours, saved=first.answer_end)
    parameters = {
        **_reading(first),
        "members": ",".join(_names(ensemble)),
        "ensemble": ensemble.rule,
        "ensemble_std_weight": str(ensemble.std_weight),
        "dtype": request.dtype,
        "append_eos": "false" if first.is_encoder else "true",
        "reading_rules": rules.to_json(),
        "max_sequence_tokens": str(limit),
        "max_batch_tokens": str(request.max_batch_tokens),
        "packing": request.packing,
        "model_id": request.model,
        "model_version": ensemble.version,
        "vocabulary_size": str(_vocabulary(first)),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "calibration_temperature": str(ensemble.temperature),
    }
    _write(request, target, ensemble, parameters)
    return target


def _target(request: TritonExport) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", request.name):
        raise ConfigError("--name", got=request.name, allowed="letters, digits, `_`, `.` and `-`")
    target = request.target.expanduser().resolve() / request.name
    if target.exists():
        ours = (target / "1" / "model.py").is_file() and (target / "config.pbtxt").is_file()
        if not (request.force and ours):
            raise ConfigError(
                "DIR",
                got=f"{target}, which exists",
                allowed="a new name, or --force to replace an earlier export",
            )
    return target


def _reading(model: RewardModel) -> dict[str, str]:
    """Return the parameter that states the form of text that the model was trained on."""
    return {"reads": "encoder" if model.is_encoder else "ours" if model.is_ours else "hub"}


def _vocabulary(model: RewardModel) -> int:
    embedding = model.body.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    return embedding.num_embeddings


def _names(ensemble: RewardEnsemble) -> list[str]:
    count = len(ensemble.members)
    return ["model"] if count == 1 else [f"member-{number}" for number in range(count)]


def _write(
    request: TritonExport, target: Path, ensemble: RewardEnsemble, parameters: Mapping[str, str]
) -> None:
    aside = target.with_name(f".{target.name}.new")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        version = aside / "1"
        version.mkdir(parents=True)
        (aside / "config.pbtxt").write_text(config_text(request, parameters), encoding="utf-8")
        (aside / "README.md").write_text(_readme(request, parameters), encoding="utf-8")
        shutil.copyfile(_MODEL_FILE, version / "model.py")
        shutil.copyfile(str(reading.__file__), version / "reading.py")
        paths = member_paths(request.model)
        for name, path, member in zip(_names(ensemble), paths, ensemble.members, strict=True):
            _place(version / name, path, member, link=request.link)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
    except OSError as error:
        raise FairleadError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _place(folder: Path, path: str, member: RewardModel, *, link: bool) -> None:
    """Link or copy a model's folder; write a model that is an adapter or comes from the hub."""
    source = Path(path).expanduser()
    if source.is_dir() and adapters.base_of(path) is None:
        if link:
            folder.symlink_to(source.resolve(), target_is_directory=True)
        else:
            shutil.copytree(source, folder)
        return
    if link:
        raise ConfigError(
            "--link", got=f"{path!r}, an adapter or a hub id", allowed="a folder with a complete model"
        )
    member.model.save_pretrained(folder)
    load_tokenizer(path).save_pretrained(folder)


def config_text(request: TritonExport, parameters: Mapping[str, str]) -> str:
    """Return config.pbtxt: tensors named as in NeMo-Aligner, batched by the dynamic batcher."""
    ragged = " allow_ragged_batch: true" if request.ragged else ""
    written = "\n".join(
        f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}"
        for key, value in parameters.items()
    )
    return f"""name: {json.dumps(request.name)}
backend: "python"
max_batch_size: {request.max_batch_size}
input [
  {{ name: "tokens" data_type: TYPE_INT64 dims: [ -1 ] optional: true{ragged} }},
  {{ name: "sequence_lengths" data_type: TYPE_INT64 dims: [ 1 ] optional: true }},
  {{ name: "sentences" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "rewards" data_type: TYPE_FP32 dims: [ 1 ] }},
  {{ name: "num_tokens" data_type: TYPE_INT64 dims: [ 1 ] }}
]
# No delay: waiting requests are batched when the model is free. Level 1 is served before level 2.
dynamic_batching {{
  priority_levels: 2
  default_priority_level: 1
  default_queue_policy {{ allow_timeout_override: true max_queue_size: 4096 }}
}}
instance_group [ {{ kind: KIND_AUTO count: 1 }} ]
{written}
"""


def _readme(request: TritonExport, parameters: Mapping[str, str]) -> str:
    return f"""# {request.name}: a reward model for Triton

Written by `fairlead export-triton` from `{parameters["model_id"]}`, version {parameters["model_version"]}.

```console
$ tritonserver --model-repository <the parent of this folder>
```

The server's Python needs `torch` and `transformers`, but not Fairlead.

| tensor | type, shape | meaning |
|---|---|---|
| `tokens` | INT64 [B, S] | ids of prompt and response, joined; rows padded on the right with any id |
| `sequence_lengths` | INT64 [B, 1] | ids of each row without padding; all ids if absent |
| `sentences` | BYTES [B, 1] | instead of both: whole texts, tokenized by this model |
| `rewards` | FP32 [B, 1] | the scores |
| `num_tokens` | INT64 [B, 1] | number of tokens of each row |

At most {parameters["max_sequence_tokens"]} tokens a row, {request.max_batch_size} rows a request. The dynamic
batcher merges requests of {"any lengths" if request.ragged else "equal shapes"};
requests with parameter `priority` 2 wait for those with 1. Fairlead's reward service uses this model with
`[reward] engine = "triton"`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Export a model as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.reward.triton.export", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("target", type=Path)
    parser.add_argument("--name", default="reward")
    parser.add_argument("--dtype", choices=get_args(DType), default="float32")
    parser.add_argument("--max-batch-size", type=int, default=64)
    parser.add_argument("--max-batch-tokens", type=int, default=8_192)
    parser.add_argument("--packing", choices=get_args(PackingRule), default="sorted")
    parser.add_argument("--link", action="store_true")
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args(argv)
    log.setup(style="human", level="WARNING")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        written = export(TritonExport(**vars(options)))
    except FairleadError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code(error)
    with suppress(BrokenPipeError):
        sys.stdout.write(f"{written}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
