"""What each rank of a test does: loads models with the others, and compares its rows with the whole model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from fairlead.config.base import ComputeSection
from fairlead.config.training import LoraSection
from fairlead.errors import ModelLoadError
from fairlead.nn import adapters
from fairlead.nn.checks import INDEX_FILE
from fairlead.nn.loading import load_causal_lm
from tests.tiny import tiny_reward_model
from tests.unit.fairlead.nn.test_gguf import write_gguf
from tests.unit.trainer.distributed.sharded_cases import CASES, Case, make_models, section_of
from trainer.distributed import model_folder, sharding
from trainer.distributed.blocks import block_of
from trainer.distributed.group import Group
from trainer.distributed.loading import loader
from trainer.distributed.sharding import Root, is_divided, local
from trainer.ppo import actor_critic
from trainer.ppo.actor_critic import ActorCritic

CPU = ComputeSection(device="cpu")
LOWER = ComputeSection(device="cpu", dtype="bfloat16")
ROW_BY_ROW = ("tiny", "tiny-tied", "indexed", "prefixed", "old-names", "experts")
"""Models of which every rank reads only its rows."""
BY_FIRST = ("twice", "adapter", "gguf")
"""Models that the first rank loads for the others."""
WEIGHTS = "model.safetensors"


def make(folder: Path) -> None:
    """Save all models that are loaded, and damaged ones."""
    make_models(folder)
    tiny_reward_model(folder / "reward")
    load_causal_lm(str(folder / "tiny"), CPU).save_pretrained(folder / "indexed", max_shard_size="40KB")
    assert len(list((folder / "indexed").glob("model-*.safetensors"))) > 2
    changed(
        folder,
        "tiny",
        "prefixed",
        lambda tensors: {
            name.removeprefix("model."): one for name, one in tensors.items() if name != "lm_head.weight"
        },
        tie_word_embeddings=True,
    )
    changed(
        folder,
        "gpt2",
        "old-names",
        lambda tensors: {name.removeprefix("transformer."): one for name, one in tensors.items()},
    )
    torch.manual_seed(0)
    experts = MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=5,
        max_position_embeddings=64,
    )
    MixtralForCausalLM(experts).save_pretrained(folder / "experts")
    changed(
        folder,
        "tiny-tied",
        "twice",
        lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
    )
    base = str(folder / "tiny")
    adapted = load_causal_lm(base, CPU)
    adapters.add(adapted, LoraSection(rank=2, alpha=8), base=base, field="lora", seed=1)
    for parameter in adapters.tensors(adapted).values():
        nn.init.normal_(parameter)
    adapters.save(adapted, folder / "adapter", merge=False)
    (folder / "gguf").mkdir()
    write_gguf(folder / "llama", folder / "gguf" / "model.gguf")
    damage(folder)


def damage(folder: Path) -> None:
    """Save models that are refused."""
    last = "model.layers.1.mlp.down_proj.weight"
    changed(folder, "tiny", "lacking", lambda tensors: {k: v for k, v in tensors.items() if k != last})
    changed(folder, "tiny", "reshaped", lambda tensors: tensors | {last: tensors[last][:-1].clone()})
    changed(folder, "tiny", "more", lambda tensors: tensors | {last.replace("1", "2"): tensors[last].clone()})

    def with_nan(tensors):
        tensors[last][-1, -1] = float("nan")
        return tensors

    changed(folder, "tiny", "nan", with_nan)
    changed(folder, "tiny", "truncated", lambda tensors: tensors)
    file = folder / "truncated" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    load_causal_lm(str(folder / "tiny"), CPU).save_pretrained(folder / "outside", max_shard_size="40KB")
    index = folder / "outside" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][last] = "../tiny/model.safetensors"
    index.write_text(json.dumps(content))


REFUSED = ("lacking", "reshaped", "more", "nan", "truncated", "outside", "absent")


def changed(folder: Path, source: str, name: str, change: Callable, **config: object) -> None:
    """Save a model with other tensors."""
    target = folder / name
    target.mkdir()
    for file in (folder / source).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    save_file(change(load_file(folder / source / WEIGHTS)), target / WEIGHTS, metadata={"format": "pt"})
    settings = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | config))


def differences(ours: nn.Module, theirs: nn.Module) -> list[str]:
    """The tensors of a divided model that are not bit for bit the rows of a whole one."""
    found = []
    for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
        divided, whole = (dict(kind(model, remove_duplicate=False)) for model in (ours, theirs))
        if divided.keys() != whole.keys():
            return sorted(divided.keys() ^ whole.keys())
        for name, one in divided.items():
            rows = whole[name].detach()
            if is_divided(one):
                rows = block_of(one, dist.get_rank()).of(rows)
            same = one.requires_grad == whole[name].requires_grad and one.dtype == whole[name].dtype
            if not same or not torch.equal(local(one.detach()), rows):
                found.append(name)
    return found


def settings(model: PreTrainedModel) -> dict[str, object]:
    """The configuration of a model, without what says where it came from."""
    return {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "dtype")}


def aliases(model: nn.Module) -> int:
    """How many names of parameters mean one that has another name."""
    return len(dict(model.named_parameters(remove_duplicate=False))) - len(dict(model.named_parameters()))


def loads(group: Group, folder: Path, section: ComputeSection) -> dict[str, object]:
    """Every model that loads: what differs, and whether all of its parameters are divided."""
    found = {}
    log = Messages()
    logging.getLogger("trainer.distributed.loading").addHandler(log)
    logging.getLogger("trainer.distributed.loading").setLevel(logging.INFO)
    for name in (*ROW_BY_ROW, *BY_FIRST):
        log.lines.clear()
        ours = load_causal_lm(str(folder / name), section, load=loader(group))
        theirs = load_causal_lm(str(folder / name), section)
        found[name] = {
            "differences": differences(ours, theirs),
            "undivided": [name for name, one in ours.named_parameters() if not is_divided(one)],
            "aliases": [aliases(ours), aliases(theirs)],
            "first": len(log.lines),
            "config": settings(ours) == settings(theirs),
            "training": ours.training,
        }
    return found


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def refusals(group: Group, folder: Path) -> Iterator[dict[str, str]]:
    """The message of each refusal, on this rank and on a single one."""
    for name in REFUSED:
        messages = []
        for load in (loader(group), None):
            try:
                load_causal_lm(str(folder / name), CPU, load=load)
                messages.append("")
            except ModelLoadError as error:
                messages.append(str(error))
        yield {"model": name, "ours": messages[0], "theirs": messages[1]}


def trained(group: Group | None, folder: Path, case: Case, critic: str | None) -> ActorCritic:
    """Policy and critic of a case."""
    path = folder / (case.model + "-tied" * case.tied)
    return actor_critic.load(
        str(path), section_of(case), critic_path=critic and str(folder / critic), seed=3, group=group
    )


def actor_critics(group: Group, folder: Path, numbers: list[int]) -> list[dict[str, object]]:
    """Policy and critic of the cases, and a critic from a reward model."""
    found = []
    pairs = [(CASES[number], None) for number in numbers]
    for case, critic in (*pairs, (CASES[5], "reward")):
        ours, theirs = (trained(one, folder, case, critic) for one in (group, None))
        found.append(
            {
                "case": case.name,
                "differences": [
                    name
                    for model in ("policy", "critic")
                    if getattr(ours, model) is not None  # some estimators need no critic
                    for name in differences(getattr(ours, model), getattr(theirs, model))
                ],
                "adapter": ours.adapter == theirs.adapter,
            }
        )
    return found


FOLDERS = (
    ("tiny-tied", None, CPU),
    ("gpt2", None, CPU),
    ("experts", None, CPU),
    ("old-names", None, CPU),
    ("llama", LoraSection(rank=2, alpha=8, merge=True), LOWER),
    ("gpt2", LoraSection(rank=2, alpha=8, merge=True), CPU),
    ("experts", LoraSection(rank=2, alpha=8, merge=True, target_modules=("q_proj", "gate_up_proj")), CPU),
    ("llama", LoraSection(rank=2, alpha=8), CPU),
)
"""Models that are written, with adapters or without."""


def folders(group: Group, folder: Path) -> list[dict[str, object]]:
    """Folders that all ranks write and that one writes: what differs."""
    found = []
    for number, (name, lora, section) in enumerate(FOLDERS):
        paths = [folder / "written" / f"{number}-{who}" for who in ("ranks", "one")]
        for path, ranks in zip(paths, (group, Group.single()), strict=True):
            if ranks.size == 1 and group.rank:
                continue
            model = load_causal_lm(str(folder / name), section, load=loader(ranks))
            if lora is not None:
                adapters.add(model, lora, base=str(folder / name), field="lora", seed=1)
                torch.manual_seed(7)
                for parameter in adapters.tensors(model).values():
                    parameter.data = torch.randn(parameter.shape)
            sharding.shard(Root(model, ranks), torch.device("cpu"), compute=torch.float32, group=ranks)
            with model_folder.new_folder(path, ranks) as target:
                model_folder.write(target, model, ranks, merge=lora is not None and lora.merge)
        if group.is_first:
            found.append({"model": name, **compared(*paths)})
    return found


def compared(ours: Path, theirs: Path) -> dict[str, object]:
    """What differs between two folders of a model, and the files of weights of the first."""
    first, second = (
        {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for path in (ours, theirs)
    )
    differences = sorted(first.keys() ^ second.keys()) or [
        name
        for name, one in first.items()
        if one.dtype != second[name].dtype or not torch.equal(one, second[name])
    ]
    texts = sorted(path.name for path in theirs.glob("*.json") if "index" not in path.name)
    differences += [name for name in texts if (ours / name).read_text() != (theirs / name).read_text()]
    index = ours / INDEX_FILE
    if index.is_file():
        nbytes = sum(tensor.nbytes for tensor in first.values())
        content = json.loads(index.read_text())
        differences += [] if content["metadata"]["total_size"] == nbytes else [index.name]
        differences += sorted(content["weight_map"].keys() ^ first.keys())
    load_causal_lm(str(ours), CPU)
    return {
        "differences": differences,
        "texts": texts,
        "files": sorted(path.name for path in ours.glob("*.safetensors*")),
    }


def everything(group: Group, folder: str, numbers: list[int]) -> dict[str, object]:
    """All of the above, for one start of the processes."""
    return {
        "float32": loads(group, Path(folder), CPU),
        "bfloat16": loads(group, Path(folder), LOWER),
        "folders": folders(group, Path(folder)),
        "refusals": list(refusals(group, Path(folder))),
        "actor_critics": actor_critics(group, Path(folder), numbers),
    }


def check_loads(rank: dict) -> None:
    """Check the models that a rank has loaded."""
    for name in (*ROW_BY_ROW, *BY_FIRST):
        for dtype in ("float32", "bfloat16"):
            found = rank[dtype][name]
            assert found["differences"] == found["undivided"] == [], name
            assert found["aliases"][0] == found["aliases"][1], name
            assert (found["config"], found["training"]) == (True, False), name


def check_models(rank: dict, cases: list[int]) -> None:
    """Check the policies and critics that a rank has loaded."""
    assert len(rank["actor_critics"]) == len(cases) + 1
    for one in rank["actor_critics"]:
        assert one["differences"] == [], one
        assert one["adapter"], one
