"""`python -m services.reward.triton.export MODEL DIR`: a reward model as a repository that Triton serves.

What `fairlead export-triton` starts. Loads the model as the reward service does, so what that would refuse is
refused here; writes `DIR/<name>/`: config.pbtxt (Python backend, ragged batching), `1/model.py`, the model's
folder and a README. Whole or not at all.
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
from fairlead.errors import ConfigError, FairleadError, exit_code
from fairlead.nn import adapters
from fairlead.nn.ensemble import RewardEnsemble, load_ensemble, member_paths
from fairlead.nn.loading import check_vocabulary, load_tokenizer, max_sequence_tokens, tokenizer_fingerprint
from fairlead.nn.reward_model import RewardModel

Packing = Literal["sorted", "arrival", "each"]
"""How the model cuts a merged batch into forward passes; see triton_model.py."""

_MODEL_FILE = Path(__file__).with_name("model.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is exported, and how it is served."""

    model: str
    """Folder or hub id of a reward model or an ensemble."""
    target: Path
    """Triton's model repository; other models may be in it."""
    name: str = "reward"
    """The model's name in it."""
    dtype: DType = "float32"
    """Computation type of the model's body."""
    max_batch_size: int = 64
    """Sequences that Triton merges into one call, at most."""
    max_batch_tokens: int = 8_192
    """Tokens, padding included, of one forward pass."""
    packing: Packing = "sorted"
    """How a merged batch is cut into forward passes."""
    ragged: bool = True
    """Merge sequences of different lengths. Without it Triton merges equal shapes only."""
    link: bool = False
    """Symbolic links to the model's folder instead of a copy."""
    force: bool = False
    """Replace an earlier export of this name."""


def export(request: Request) -> Path:
    """Writes the model's folder in the repository; returns it.

    Raises:
        ConfigError: a name or a target that may not be used.
        ModelLoadError: the model cannot be loaded or is no reward model.
        FairleadError: the disk refuses.
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
    parameters = {
        **_reading(first),
        "members": ",".join(_names(ensemble)),
        "ensemble": ensemble.rule,
        "ensemble_std_weight": str(ensemble.std_weight),
        "dtype": request.dtype,
        "append_eos": "false" if first.is_encoder else "true",
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


def _target(request: Request) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", request.name):
        raise ConfigError("--name", got=request.name, allowed="letters, digits, `_`, `.` and `-`")
    target = request.target.expanduser().resolve() / request.name
    if target.exists():
        ours = (target / "1" / "model.py").is_file() and (target / "config.pbtxt").is_file()
        if not (request.force and ours):
            raise ConfigError(
                "DIR", got=f"{target}, which exists", allowed="a new name, or --force over an earlier export"
            )
    return target


def _reading(model: RewardModel) -> dict[str, str]:
    """How it has learnt to read: an encoder, one that Fairlead has trained, or one of the hub."""
    return {"reads": "encoder" if model.is_encoder else "ours" if model.is_ours else "hub"}


def _vocabulary(model: RewardModel) -> int:
    embedding = model.body.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Embedding)
    return embedding.num_embeddings


def _names(ensemble: RewardEnsemble) -> list[str]:
    count = len(ensemble.members)
    return ["model"] if count == 1 else [f"member-{number}" for number in range(count)]


def _write(request: Request, target: Path, ensemble: RewardEnsemble, parameters: Mapping[str, str]) -> None:
    aside = target.with_name(f".{target.name}.new")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        version = aside / "1"
        version.mkdir(parents=True)
        (aside / "config.pbtxt").write_text(config_text(request, parameters), encoding="utf-8")
        (aside / "README.md").write_text(_readme(request, parameters), encoding="utf-8")
        shutil.copyfile(_MODEL_FILE, version / "model.py")
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
    """A model's files: linked, copied, or written where they are an adapter's or come from the hub."""
    source = Path(path).expanduser()
    if source.is_dir() and adapters.base_of(path) is None:
        if link:
            folder.symlink_to(source.resolve(), target_is_directory=True)
        else:
            shutil.copytree(source, folder)
        return
    if link:
        raise ConfigError(
            "--link", got=f"{path!r}, an adapter or a hub id", allowed="a folder with a whole model"
        )
    member.model.save_pretrained(folder)
    load_tokenizer(path).save_pretrained(folder)


def config_text(request: Request, parameters: Mapping[str, str]) -> str:
    """config.pbtxt: inputs and outputs as NeMo-Aligner names them, batched by the dynamic batcher."""
    ragged = " allow_ragged_batch: true" if request.ragged else ""
    told = "\n".join(
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
# No delay: what waits is taken when the model is free. Level 1 is served before level 2.
dynamic_batching {{
  priority_levels: 2
  default_priority_level: 1
  default_queue_policy {{ allow_timeout_override: true max_queue_size: 4096 }}
}}
instance_group [ {{ kind: KIND_AUTO count: 1 }} ]
{told}
"""


def _readme(request: Request, parameters: Mapping[str, str]) -> str:
    return f"""# {request.name}: a reward model for Triton

Made by `fairlead export-triton` from `{parameters["model_id"]}`, version {parameters["model_version"]}.

```console
$ tritonserver --model-repository <the folder above this one>
```

The server's Python needs `torch` and `transformers`. Nothing else of Fairlead is used.

| tensor | type, shape | what it is |
|---|---|---|
| `tokens` | INT64 [B, S] | ids of prompt and response together, rows padded on the right with any id |
| `sequence_lengths` | INT64 [B, 1] | ids of each row that count; all of them if absent |
| `sentences` | BYTES [B, 1] | instead of both: whole texts, tokenized here |
| `rewards` | FP32 [B, 1] | the scores |
| `num_tokens` | INT64 [B, 1] | what was read |

At most {parameters["max_sequence_tokens"]} tokens a row, {request.max_batch_size} rows a request. The dynamic
batcher merges requests of {"any lengths" if request.ragged else "equal shapes"};
parameter `priority` 2 waits for 1. Fairlead's reward service scores through it with
`[reward] engine = "triton"`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exports; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.reward.triton.export", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("target", type=Path)
    parser.add_argument("--name", default="reward")
    parser.add_argument("--dtype", choices=get_args(DType), default="float32")
    parser.add_argument("--max-batch-size", type=int, default=64)
    parser.add_argument("--max-batch-tokens", type=int, default=8_192)
    parser.add_argument("--packing", choices=get_args(Packing), default="sorted")
    parser.add_argument("--link", action="store_true")
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args(argv)
    log.setup(style="human", level="WARNING")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        written = export(Request(**vars(options)))
    except FairleadError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code(error)
    with suppress(BrokenPipeError):
        sys.stdout.write(f"{written}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
