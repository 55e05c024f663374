"""What each rank of a test does: writes checkpoints and versions with the others, and reads them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import threading
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from fairlead.errors import ConfigError, NotFinite
from fairlead.local.run_files import read_progress
from fairlead.transports.weights.base import Ancestor
from fairlead.transports.weights.filesystem import FilesystemWeightStore
from fairlead.types import WeightVersion
from tests.unit.trainer.distributed.sharded_cases import (
    CASES,
    FAST,
    WHOLE,
    Case,
    compare,
    models_of,
    rollouts_of,
    section_of,
    weights,
    whole,
)
from tests.unit.trainer.stage_world import preference_run, reward_model_run, sft_run
from tests.waiting import until
from trainer.checkpoint import CheckpointStore
from trainer.distributed import slices
from trainer.distributed.group import Group
from trainer.distributed.sharding import local
from trainer.distributed.vocabulary import of_logits
from trainer.model_state import trained_tensors
from trainer.ppo import actor_critic, publish, step
from trainer.ppo.actor_critic import ActorCritic
from trainer.preference import train as preference
from trainer.reward_model import train as reward_model
from trainer.sequences import pad
from trainer.sft import train as sft

VERSION = WeightVersion(1, 1)
LINEAGE = (Ancestor(1, 0),)
TIED, LORA = CASES[6], CASES[9]
LLAMA_LORA = Case("llama", double=False, lora=True)
"""With adapters, of an architecture that tensor parallelism divides."""


def update(models: ActorCritic, case: Case, number: int) -> None:
    """An update of two steps."""
    section = section_of(case).model_copy(update={"mini_batch_size": 5})
    prepared, _ = step.prepare(models, rollouts_of(case), section, temperature=0.8)
    step.optimise(models, prepared, section, temperature=0.8, seed=1, update=number)


def digest(row: Tensor) -> str:
    return hashlib.sha256(row.numpy().tobytes()).hexdigest()


def folder_of(case: Case, folder: Path) -> Path:
    return folder / f"checkpoints-{case.name.replace(' ', '-')}"


def write(group: Group, folder: Path, case: Case) -> str:
    """Train an update, write a checkpoint, and train another one; the weights then are kept in a file."""
    models = models_of(case, folder, group)
    update(models, case, 0)
    step.prepare(
        models, rollouts_of(case), section_of(case), temperature=0.8
    )  # passes without a backward pass
    store = CheckpointStore(folder_of(case, folder))
    if group.size == 1:
        store.save(VERSION, tensors=models.state(), state={"update": 1})
    elif group.is_first:
        made = folder / "made"

        def announce(temporary: Path) -> None:
            made.write_text(str(temporary))
            group.broadcast(b"")

        store.save(VERSION, tensors=models.state(), state={"update": 1}, group=group, announce=announce)
    else:
        group.broadcast(b"")
        slices.write(Path((folder / "made").read_text()), models.state(), group)
    group.barrier()
    update(models, case, 1)
    row = whole(weights(models), group)
    if group.is_first:
        save_file({"weights": row}, folder_of(case, folder) / "after.safetensors")
    return digest(row)


def resume(group: Group, folder: Path, case: Case) -> tuple[str, float]:
    """Read the checkpoint and train another update; return the digest of the weights, and how far they are
    from those of the ranks that wrote it.
    """
    models = models_of(case, folder, group)
    found = CheckpointStore(folder_of(case, folder)).load(VERSION, verify=group.is_first)
    assert found.state == {"update": 1}
    models.load_state(found.tensors)
    update(models, case, 1)
    row = whole(weights(models), group)
    if not group.is_first:
        return "", 0.0
    theirs = load_file(folder_of(case, folder) / "after.safetensors")["weights"]
    return digest(row), float((row - theirs).abs().max() / theirs.abs().max())


def checkpoints(
    group: Group, folder: Path, cases: tuple[Case, ...] = (TIED, LORA)
) -> list[dict[str, object]]:
    """Written by these ranks and read by them and by one; and written by one and read by these ranks."""
    found = []
    for case in cases:
        written = write(group, folder, case)
        group.barrier()
        read, difference = resume(group, folder, case)
        assert difference == 0
        entry: dict[str, object] = {"written": written, "read": read}
        if group.is_first:
            entry["by_one"] = resume(WHOLE, folder, case)[1]
            stored = CheckpointStore(folder_of(case, folder)).load(VERSION).tensors
            entry["groups"] = sorted(stored)
            write(WHOLE, folder, case)
        group.barrier()
        entry["of_one"] = resume(group, folder, case)[1]
        found.append(entry)
    return found


def resume_all(group: Group, folder: str) -> list[float]:
    """How far these ranks are from those that wrote the checkpoints, after another update."""
    return [resume(group, Path(folder), case)[1] for case in (TIED, LORA)]


def versions(group: Group, folder: Path, lora: Case = LORA) -> list[dict[str, object]]:
    """Versions that all ranks write, compared with whole tensors that are gathered at one."""
    found = []
    for number, (case, dtype) in enumerate(
        ((TIED, torch.float32), (TIED, torch.bfloat16), (lora, torch.bfloat16))
    ):
        models = models_of(case, folder, group)
        update(models, case, 0)
        # By torch itself; `whole_at` is what is tested.
        gathered = {
            name: one.full_tensor() if isinstance(one, DTensor) else one
            for name, one in trained_tensors(models.policy).items()
        }
        store = FilesystemWeightStore(folder / "weights")
        version = WeightVersion(1, number)

        def write_shards(staging: Path, models: ActorCritic = models, dtype: torch.dtype = dtype) -> list:
            (folder / "staging").write_text(str(staging))
            group.broadcast(b"")
            return publish.write_shards(models, staging, dtype=dtype)

        if not group.is_first:
            group.broadcast(b"")
            publish.write_shards(models, Path((folder / "staging").read_text()), dtype=dtype)
            group.barrier()
            continue
        publish.publish(
            store,
            version,
            write=write_shards,
            parent=None,
            lineage=LINEAGE,
            keep=9,
            adapter=models.adapter,
        )
        group.barrier()
        files = sorted(store.fetch(version).glob("*.safetensors"))  # verifies every digest
        written = {name: one for file in files for name, one in load_file(file).items()}
        kept = torch.float32 if case.lora else dtype
        assert {one.dtype for one in written.values()} == {kept}
        assert written.keys() == gathered.keys()
        assert all(torch.equal(written[name], gathered[name].to(kept)) for name in written)
        found.append({"files": [file.name for file in files], "tensors": len(written)})
    return found


def damaged_weight(group: Group, folder: Path) -> str:
    """The error of a weight that is not finite, in a row that only the last rank holds."""
    models = models_of(TIED, folder, group)
    last = list(trained_tensors(models.critic).values())[3]
    if group.rank == group.size - 1:
        local(last)[-1, 0] = float("nan")
    try:
        models.check_weights()
    except NotFinite as error:
        return str(error)
    return ""


def held(group: Group, folder: Path, cases: tuple[Case, ...] = (TIED, LORA)) -> list[dict[str, float]]:
    """The parts of policy and critic that this rank holds after a step, each storage once."""
    found = []
    for case in cases:
        models = models_of(case, folder, group)
        update(models, case, 0)
        whole_bytes, own = 0, {}
        for model in (models.policy, models.critic):
            for one in nn.Module.parameters(model):
                whole_bytes += one.nbytes
                rows = local(one.detach())
                own[rows.untyped_storage().data_ptr()] = rows.untyped_storage().nbytes()
        moments = [
            one["exp_avg"] for optimizer in models.optimizers.values() for one in optimizer.state.values()
        ]
        found.append(
            {
                "weights": sum(own.values()) / whole_bytes,
                "moments": sum(local(one).nbytes for one in moments) / sum(one.nbytes for one in moments),
            }
        )
    return found


def stages(group: Group, folder: Path) -> list[dict[str, object]]:
    """SFT and reward-model training by these ranks and by one, each with a checkpoint on the way."""
    found = []
    for train, make, name in (
        (sft.train, sft_config, "sft"),
        (reward_model.train, reward_model_config, "reward_model"),
        (preference.train, preference_config, "preference"),
        (preference.train, kto_config, "preference"),
    ):
        configs = [make(folder, who) for who in ("ranks", "one")]
        ours = train(configs[0], group=group)
        if not group.is_first:
            continue
        theirs = train(configs[1])
        paths = [config.folder.root / name for config in configs]
        first, second = (
            torch.cat([one.flatten() for _, one in sorted(tensors_in(path).items())]) for path in paths
        )
        found.append(
            {
                "same_keys": ours.keys() == theirs.keys(),
                "train_loss": [ours["train_loss"], theirs["train_loss"]],
                "accuracy": [ours.get("accuracy"), theirs.get("accuracy")],
                "weights": float((first - second).abs().max() / second.abs().max()),
            }
        )
    return found


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model's folder, which may have several files."""
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


def sft_config(folder: Path, name: str, *, epochs: int = 1):
    changes = {"epochs": epochs, "max_micro_batch_tokens": 40}
    return sft_run(folder / name, **changes, gradient_checkpointing=True)


def reward_model_config(folder: Path, name: str):
    path = str(folder / "tiny")
    return reward_model_run(folder / name, comparisons=30, path=path, epochs=1, max_micro_batch_tokens=40)


def preference_config(folder: Path, name: str, **changes: object):
    settings = {"epochs": 1, "max_micro_batch_tokens": 40, "path": str(folder / "tiny"), **changes}
    return preference_run(folder / f"{name}-{changes.get('loss', 'dpo')}", comparisons=30, **settings)


def kto_config(folder: Path, name: str):
    return preference_config(folder, name, loss="kto")


def interrupted(group: Group, folder: str) -> dict[str, object]:
    """SFT of which the last rank gets SIGTERM, and which then continues; and the same undisturbed."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    config = sft_config(Path(folder), "stopped", epochs=2)
    if group.rank == group.size - 1:
        threading.Thread(target=stop_at, args=(config.folder.progress, 4), daemon=True).start()
    code: object = None
    try:
        sft.train(config, group=group)
    except SystemExit as stop:
        code = stop.code
    written = sorted(path.name for path in config.folder.stage_checkpoints("sft").glob("*-*/*"))
    group.barrier()
    sft.train(config, group=group)
    undisturbed = sft_config(Path(folder), "undisturbed", epochs=2)
    sft.train(undisturbed, group=group)
    if not group.is_first:
        return {"code": code}
    first, second = (tensors_in(one.folder.sft_model) for one in (config, undisturbed))
    same = all(torch.equal(first[name], value) for name, value in second.items())
    return {"code": code, "written": written, "same": same}


def stop_at(progress: Path, step: int) -> None:
    """Send SIGTERM to this process when rank 0 has reported a step."""
    asyncio.run(until(lambda: (now := read_progress(progress)) is not None and now.step >= step))
    os.kill(os.getpid(), signal.SIGTERM)


def write_all(group: Group, folder: str) -> None:
    """Write the checkpoints that `resume_all` reads."""
    for case in (TIED, LORA):
        write(group, Path(folder), case)


def trained_and_refused(group: Group, folder: str, numbers: list[int]) -> dict[str, object]:
    """What ranks that divide layers find when they train."""
    whole_norm = one_norm(WHOLE, Path(folder))
    return {
        "training": compare(group, folder, numbers),
        "norms": [one_norm(group, Path(folder)), whole_norm],
        "refused": refused(group, Path(folder)),
        "loaded": loaded(group, Path(folder)),
        "logits": widest_logits(group, Path(folder)),
        "one_token": logprobs_of_one_token(group),
    }


def logprobs_of_one_token(group: Group) -> tuple[float, float]:
    """Log p and its gradient over a vocabulary of one token, which leaves none to the second rank."""
    mesh = init_device_mesh("cpu", (group.size,))
    head = nn.Linear(2, 1, bias=False)
    head.weight = nn.Parameter(distribute_tensor(torch.ones(1, 2), mesh, [Shard(0)]))
    logits_NV = (torch.ones(3, 2) @ head.weight.to_local().T).detach().requires_grad_()
    logprobs_N, _ = of_logits(head)(logits_NV, torch.zeros(3, dtype=torch.long), 0.7)
    logprobs_N.sum().backward()
    assert logits_NV.grad is not None
    return float(logprobs_N.abs().sum()), float(logits_NV.grad.abs().sum())


def files_of_divided_layers(group: Group, folder: str) -> dict[str, object]:
    """What ranks that divide layers write and read, and what each holds."""
    cases = (TIED, LLAMA_LORA)
    return {
        "files": {
            "checkpoints": checkpoints(group, Path(folder), cases),
            "versions": versions(group, Path(folder), LLAMA_LORA),
        },
        "held": held(group, Path(folder), cases),
        "stages": stages(group, Path(folder)),
    }


def loaded(group: Group, folder: Path) -> bool:
    """Whether ranks that read only their own rows hold the parts of the whole model, and compute as it."""
    path = str(folder / "tiny-tied")
    ours, one = (actor_critic.load(path, section_of(TIED), seed=3, group=each) for each in (group, WHOLE))
    same = torch.equal(whole(weights(ours), group), whole(weights(one), WHOLE)) or not group.is_first
    batch = pad(rollouts_of(TIED).sequences, torch.device("cpu"))
    with torch.no_grad():
        logprobs = [models.logprobs(batch, temperature=0.8) for models in (ours, one)]
    return same and torch.allclose(*logprobs, atol=1e-5)


def widest_logits(group: Group, folder: Path) -> int:
    """The most logits of a token that this rank has at a time."""
    models = models_of(TIED, folder, group)
    widths = []
    head = models.policy.get_output_embeddings()
    call = head.forward

    def forward(hidden_NH: Tensor) -> Tensor:
        logits_NV = call(hidden_NH)
        widths.append(logits_NV.shape[-1])
        return logits_NV

    head.forward = forward
    models.logprobs(pad(rollouts_of(TIED).sequences, torch.device("cpu")), temperature=1.0)
    return max(widths)


def one_norm(group: Group, folder: Path) -> float:
    """The norm of the gradient of the policy in the first step."""
    models = models_of(LLAMA_LORA, folder, group)
    prepared, _ = step.prepare(models, rollouts_of(LLAMA_LORA), section_of(LLAMA_LORA), temperature=0.8)
    figures = step.accumulate_gradients(models, prepared, range(3), section_of(LLAMA_LORA), temperature=0.8)
    return models.step(figures, where="in the test")["policy_gradient_norm"]


def refused(group: Group, folder: Path) -> str:
    """The error of an architecture that transformers has no plan for."""
    try:
        models_of(LORA, folder, group)
    except ConfigError as error:
        return str(error)
    return ""


def write_divided(group: Group, folder: str) -> None:
    """Write the checkpoints that `resume_divided` reads."""
    for case in (TIED, LLAMA_LORA):
        write(group, Path(folder), case)


def resume_divided(group: Group, folder: str) -> list[float]:
    """How far these ranks are from those that wrote the checkpoints, after another update."""
    return [resume(group, Path(folder), case)[1] for case in (TIED, LLAMA_LORA)]


def everything(group: Group, folder: str) -> dict[str, object]:
    """All of the above, for one start of the processes."""
    return {
        "training": compare(group, folder, list(FAST)),
        "checkpoints": checkpoints(group, Path(folder)),
        "versions": versions(group, Path(folder)),
        "held": held(group, Path(folder)),
        "stages": stages(group, Path(folder)),
        "damaged": damaged_weight(group, Path(folder)),
    }
