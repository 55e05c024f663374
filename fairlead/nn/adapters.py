"""Low-rank adapters on a frozen model, through peft: create, name, save, and load with their base.

The trainer learns and publishes them, and the policy service swaps them; both name a tensor as peft's files
do. An adapter's folder has peft's layout: `adapter_config.json` and `adapter_model.safetensors`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from fairlead.config.training import DropoutLoraSection, LoraSection
from fairlead.errors import ConfigError, ModelLoadError, pickle_refused
from fairlead.nn.failures import load_failure
from fairlead.nn.gguf import gguf_file

if TYPE_CHECKING:
    from peft import LoraConfig

logger = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
"""peft's names of the files in an adapter's folder."""

HEADS = ("score", "classifier")
"""Names of the layer that a sequence-classification model computes its scores with."""

_PREFIX = "base_model.model."
_NAME = "default"


def add(
    model: PreTrainedModel,
    section: LoraSection,
    *,
    base: str,
    field: str,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Freeze a model and add adapters to its linear layers and, by name, to its experts. They change nothing
    until they are trained.

    Logs how many parameters are in adapted layers, and warns of experts that get no adapter.

    Args:
        model: changed in place.
        section: rank above 0, and which layers.
        base: path or hub id of the model, written into the adapter's files; a path is made absolute.
        field: the section's name, for errors.
        seed: seeds the initial A; B is 0.
        dtype: of the adapters' weights.

    Raises:
        ConfigError: if the model has no layer with a name in `target_modules`, or dropout is set for experts.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = _linear_layers(model)
    modules, parameters = _targets(model, linear, section.target_modules, field=field)
    rate = section.dropout if isinstance(section, DropoutLoraSection) else 0.0
    if parameters and rate:
        raise ConfigError(
            f"{field}.dropout", got=rate, allowed=f"0 with adapters of experts ({', '.join(parameters)})"
        )
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # peft divides it, so it need not be an integer
        lora_dropout=rate,
        target_modules=modules,
        target_parameters=parameters or None,
        # GPT-2 stores its matrices transposed.
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
        bias="none",
        base_model_name_or_path=str(Path(base).resolve()) if Path(base).exists() else base,
    )
    _report(model, linear, section, field=field)
    nn.Module.requires_grad_(model, False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    nn.Module.eval(model)
    for parameter in tensors(model).values():
        parameter.data = parameter.data.to(dtype)


def _targets(
    model: PreTrainedModel,
    linear: Mapping[str, nn.Module],
    names: Literal["all-linear"] | tuple[str, ...],
    *,
    field: str,
) -> tuple[list[str], list[str]]:
    """Return which names mean linear layers, and which mean experts that are stacked into one parameter."""
    if names == "all-linear":
        return sorted(_short(linear)), []
    experts = _experts(model)
    modules = [target for target in names if any(_matches(name, target) for name in linear)]
    parameters = [target for target in names if any(_matches(name, target) for name in experts)]
    for target in names:
        if target not in modules and target not in parameters:
            known = sorted({name.rpartition(".")[2] for name in (*linear, *experts)})
            raise ConfigError(
                f"{field}.target_modules", got=target, allowed=f"all-linear, or some of {', '.join(known)}"
            )
    return modules, parameters


def _report(
    model: PreTrainedModel, linear: Mapping[str, nn.Module], section: LoraSection, *, field: str
) -> None:
    """Log how many parameters are in the layers that get adapters, and warn of experts that get none."""
    weights = {name: sum(one.numel() for one in layer.parameters()) for name, layer in linear.items()}
    experts = {name: parameter.numel() for name, parameter in _experts(model).items()}
    chosen = section.target_modules
    adapted = sum(
        count
        for name, count in (weights if chosen == "all-linear" else weights | experts).items()
        if chosen == "all-linear" or any(_matches(name, target) for target in chosen)
    )
    total = sum(parameter.numel() for parameter in nn.Module.parameters(model))
    logger.info(
        "%s: adapters of rank %d on layers with %s of %s parameters",
        *(field, section.rank, f"{adapted:,}", f"{total:,}"),
    )
    if chosen == "all-linear" and experts:
        names = sorted(_short((*weights, *experts)))
        logger.warning(
            "%s.target_modules: `all-linear` adapts no experts, which have %s of %s parameters; to adapt "
            "them too, which holds a second copy of their weights during a step, set it to %s",
            *(field, f"{sum(experts.values()):,}", f"{total:,}", json.dumps(names)),
        )


@contextmanager
def dropout(model: PreTrainedModel, *, seed: int) -> Iterator[None]:
    """Enable the adapters' dropout, seeded, within the block."""
    layers = [module for name, module in model.named_modules() if ".lora_dropout." in name]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Compute with the frozen model only, for the duration of the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            # Its method would also switch the training of the adapters off and on.
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def is_adapted(model: nn.Module) -> bool:
    """Return whether the model has adapters."""
    return hasattr(model, "peft_config")


def tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapters' parameters, which are all that is trained, by their names in peft's files."""
    return {
        _PREFIX + name.replace(f".{_NAME}", ""): parameter
        for name, parameter in nn.Module.named_parameters(model)
        if ".lora_" in name
    }


def config(model: nn.Module) -> dict[str, object]:
    """Return the content of `adapter_config.json` for the adapters of a model."""
    found: LoraConfig = model.peft_config[_NAME]  # type: ignore[index, assignment]
    parameters = {"target_parameters": sorted(found.target_parameters)} if found.target_parameters else {}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": found.base_model_name_or_path,
        "r": found.r,
        "lora_alpha": found.lora_alpha,
        "lora_dropout": found.lora_dropout,
        "target_modules": sorted(found.target_modules or ()),
        **parameters,
        "fan_in_fan_out": found.fan_in_fan_out,
        "bias": "none",
        "inference_mode": True,
    }


def save(
    model: PreTrainedModel, folder: Path, *, merge: bool, head: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapter as peft does; with `merge`, or without an adapter, the model as `save_pretrained`
    does.

    Args:
        model: with adapters or without.
        folder: created if it does not exist.
        merge: add the adapters to the weights.
        head: weights of the model's head by name, which belong to the adapter (`modules_to_save` of peft).
    """
    if merge or not is_adapted(model):
        (merged(model) if is_adapted(model) else model).save_pretrained(folder)
        return
    save_tensors(model, folder, tensors(model), head=head)


def save_tensors(
    model: PreTrainedModel, folder: Path, found: Mapping[str, Tensor], *, head: Mapping[str, Tensor] | None
) -> None:
    """Write an adapter as peft does.

    Args:
        model: with adapters; its configuration is written.
        folder: created if it does not exist.
        found: whole tensors by their names in peft's files.
        head: see `save`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    settings = config(model)
    if head:
        kept |= {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}
        modules = sorted({name.partition(".")[0] for name in head})
        settings |= {"task_type": "SEQ_CLS", "modules_to_save": modules}
    save_file(kept, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with the adapters added to the weights, in float32: bfloat16 would lose small ones."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = copy.deepcopy(model)
    nn.Module.to(found, torch.float32)
    layers = {name: module for name, module in found.named_modules() if isinstance(module, BaseTunerLayer)}
    for module in layers.values():
        module.merge(safe_merge=True)
    for name, module in layers.items():
        # Adapters of several experts' parameters in one module are nested; the outermost is replaced.
        if name.removesuffix(".base_layer") not in layers or not name.endswith(".base_layer"):
            found.set_submodule(name, module.get_base_layer())
    return _plain(found)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """Remove the attributes that peft leaves after its layers are removed."""
    if is_adapted(model):
        del model.peft_config
    nn.Module.requires_grad_(model, True)
    return model


def base_of(path: str) -> str | None:
    """Return the base model that an adapter's folder or hub id names; None if it is not an adapter.

    Raises:
        ModelLoadError: if its configuration names no base, or the hub denies access.
    """
    folder = Path(path).expanduser()
    if folder.suffix == ".gguf" and not folder.is_dir():
        return None
    try:
        file = str(folder / CONFIG_FILE) if folder.is_dir() else _hub_config_file(path)
    except OSError as error:
        raise load_failure(f"the model {path!r}", path, error) from error
    if file is None or not Path(file).is_file():
        return None
    try:
        base = json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"the adapter {path!r}: {file} names no base model ({error!r})") from error
    if not base or not isinstance(base, str):
        raise ModelLoadError(f"the adapter {path!r}: base_model_name_or_path in {file} is empty")
    return base


def kind_of_part(path: str) -> str:
    """Return `a GGUF file` or `an adapter` if a path names one; empty for a whole model in safetensors files.

    Raises:
        ModelLoadError: as in `base_of` and `gguf_file`.
    """
    if gguf_file(path) is not None:
        return "a GGUF file"
    return "an adapter" if base_of(path) is not None else ""


def replaced(path: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that an adapter replaces as a whole, by their names in the model.

    Args:
        path: folder or hub id of an adapter.

    Raises:
        ModelLoadError: if its file of weights is missing or damaged.
    """
    folder = Path(path).expanduser()
    pickled = sorted(folder.glob("adapter_model*.bin"))
    if pickled and not (folder / WEIGHTS_FILE).exists():
        raise pickle_refused(path, pickled[0].name)
    try:
        file = folder / WEIGHTS_FILE if folder.is_dir() else Path(str(cached_file(path, WEIGHTS_FILE)))
        with safe_open(file, framework="pt") as weights:
            return {
                name.removeprefix(_PREFIX): tuple(weights.get_slice(name).get_shape())
                for name in weights.keys()  # noqa: SIM118  # not a dict
                if ".lora_" not in name
            }
    except (OSError, SafetensorError) as error:
        raise load_failure(f"the adapter {path!r}", path, error) from error


@functools.cache
def _hub_config_file(path: str) -> str | None:
    """Cached, because every attempt on a hub that does not answer takes a while."""
    found: str | None = find_adapter_config_file(path)
    return found


def load_merged(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """Return the model with the adapter of a folder or hub id added to its weights.

    Args:
        model: the adapter's base; modified.
        path: any adapter that peft supports and can merge.

    Raises:
        ModelLoadError: if the adapter is damaged or was made for another model.
    """
    from peft import PeftConfig, get_peft_model

    try:
        if not Path(path).expanduser().is_dir():
            cached_file(path, WEIGHTS_FILE)  # peft would read an adapter_model.bin, which is pickle, instead
        with warnings.catch_warnings(action="ignore"):  # missing tensors are checked below
            settings = PeftConfig.from_pretrained(path)
            settings.task_type = None  # a reward model may start from the adapter of a language model
            adapted = get_peft_model(model, settings, adapter_name=_NAME)
            report = adapted.load_adapter(path, _NAME)
            wrong = sorted((*report.missing_keys, *report.unexpected_keys))
            if wrong:
                raise ModelLoadError(
                    f"the adapter {path!r} has tensors that do not match its settings: {', '.join(wrong[:3])}"
                )
            plain = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:300]
        raise ModelLoadError(
            f"cannot apply the adapter {path!r} to its base {base_of(path)!r}: {why}. "
            "Check that its files are complete and that it was trained on that base"
        ) from error
    assert isinstance(plain, PreTrainedModel)
    return _plain(plain)


def fingerprint(path: str) -> str:
    """Return the SHA-256 over the files of a model's weights, including those of an adapter's base.

    Args:
        path: a folder, or a hub id that has been loaded before.
    """
    file = gguf_file(path)
    if file is not None:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    base = base_of(path)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = Path(str(cached_file(path, CONFIG_FILE if base else "config.json"))).parent
    digest = hashlib.sha256(fingerprint(base).encode() if base else b"")
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def differences(theirs: Mapping[str, object], ours: Mapping[str, object]) -> list[str]:
    """Return the differences between two adapters' configurations that make them incompatible."""
    return [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in ("r", "lora_alpha", "target_modules", "target_parameters", "fan_in_fan_out")
        if theirs.get(key) != ours.get(key)
    ]


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return every linear layer except the output layer and a head, by its full name."""
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not output
        and name.partition(".")[0] not in HEADS
    }


def _experts(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return every parameter that stacks the matrices of all experts of a layer, by its full name."""
    return {
        f"{prefix}.{name}": parameter
        for prefix, module in model.named_modules()
        if not type(module).__module__.startswith("torch.")  # a convolution has three dimensions, too
        for name, parameter in nn.Module.named_parameters(module, recurse=False)
        if parameter.ndim == 3
    }


def _short(names: Iterable[str]) -> set[str]:
    """Return the last part of each name, as people write them, unless it is a number."""
    return {name if (last := name.rpartition(".")[2]).isdigit() else last for name in names}


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
