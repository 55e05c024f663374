"""The three sizes of models, and the configurations of their pretraining and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from examples.parcel_help.quickstart import CONFIG as QUICKSTART
from fairlead.config import RunConfig, load

PRETRAIN = Path(__file__).with_name("pretrain.toml")
CPU = Path("/proc/cpuinfo")
HELDOUT_FRACTION = 0.25
"""Fraction of the questions that no model has seen, in any stage; the models are compared on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A size of model. A larger model has a lower learning rate, as usual."""

    name: str
    """Its name in tables."""
    hidden_size: int
    """Width."""
    num_layers: int
    """Number of transformer blocks."""
    num_heads: int
    """Number of attention heads."""
    learning_rate: float
    """Peak learning rate of pretraining."""
    sft_learning_rate: float
    """Peak learning rate of fine-tuning, where that is not the quickstart's."""
    sft_epochs: int
    """Passes over the demonstrations; a larger model learns more from one."""
    threads: int
    """CPU threads; a small model is slower with two."""
    bfloat16: bool = False
    """Whether to train in bfloat16 where the CPU multiplies it in hardware."""


SIZES = (
    Size(
        name="0.1M",
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        learning_rate=5e-3,
        sft_learning_rate=3e-3,
        sft_epochs=2,
        threads=1,
    ),
    Size(
        name="1M",
        hidden_size=176,
        num_layers=3,
        num_heads=4,
        learning_rate=2e-3,
        sft_learning_rate=1e-3,
        sft_epochs=1,
        threads=2,
    ),
    Size(
        name="10M",
        hidden_size=512,
        num_layers=4,
        num_heads=8,
        learning_rate=7e-4,
        sft_learning_rate=3e-4,
        sft_epochs=1,
        threads=2,
        bfloat16=True,
    ),
)
"""Smallest first. The last has 115 times the parameters of the first."""

OWN = frozenset({"name", "runs", "seed", "model.path", "data.heldout_fraction"})
"""Settings that each run of the headline has a value of its own for; see `_common`."""


def pretraining(size: Size, *, seed: int, folder: Path, train: Path, heldout: Path) -> RunConfig:
    """Return the run that pretrains a model on pages.

    Args:
        size: of the model.
        seed: of weights and order.
        folder: the run's own folder is made in it.
        train: the pages.
        heldout: pages that are only evaluated on.
    """
    return load(
        PRETRAIN,
        overrides={
            "name": f"base-{size.name}",
            "seed": seed,
            "runs": str(folder),
            "data.demonstrations": str(train.absolute()),
            "data.heldout_demonstrations": str(heldout.absolute()),
            "model.scratch.hidden_size": size.hidden_size,
            "model.scratch.num_layers": size.num_layers,
            "model.scratch.num_heads": size.num_heads,
            "sft.learning_rate": size.learning_rate,
            "sft.threads": size.threads,
            "sft.dtype": _dtype(size),
        },
    )


def tuning(*, seed: int, folder: Path, base: Path, changes: dict[str, object]) -> RunConfig:
    """Return the quickstart's run on a pretrained model.

    Args:
        seed: of all draws.
        folder: the run's own folder is made in it.
        base: folder of the pretrained model.
        changes: further settings by dotted key.
    """
    return load(QUICKSTART, overrides={**_common("tuned", seed, folder, base), **changes})


def fine_tuning(
    size: Size, *, seed: int, folder: Path, base: Path, demonstrations: Path, changes: dict[str, object]
) -> RunConfig:
    """Return the run that only fine-tunes a pretrained model, on the demonstrations of `tuning`."""
    own = {
        "data.demonstrations": str(demonstrations.absolute()),
        "sft.learning_rate": size.sft_learning_rate,
        "sft.epochs": size.sft_epochs,
        "sft.threads": size.threads,
        "sft.dtype": _dtype(size),
        "sft.batching": "packing",
    }
    return load(QUICKSTART, overrides={**_common(f"sft-{size.name}", seed, folder, base), **own, **changes})


def asking(config: RunConfig, size: Size) -> RunConfig:
    """Return the run with a policy service for a size of model."""
    policy = config.policy.model_copy(update={"threads": size.threads})
    return config.model_copy(update={"policy": policy})


def _dtype(size: Size) -> str:
    # Intel's name of the instructions, with which bfloat16 takes half the time of float32, and without which
    # it takes longer. Weights and optimizer are float32 either way.
    try:
        fast = " amx_bf16 " in CPU.read_text(encoding="utf-8")
    except OSError:
        fast = False
    return "bfloat16" if size.bfloat16 and fast else "float32"


def _common(name: str, seed: int, folder: Path, base: Path) -> dict[str, object]:
    return {
        "name": name,
        "seed": seed,
        "runs": str(folder),
        "model.path": str(base.absolute()),
        "data.heldout_fraction": HELDOUT_FRACTION,
    }
