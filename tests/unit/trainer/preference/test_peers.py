"""The losses of the preference stage equal those of OpenRLHF and TRL, compiled from their wheels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fairlead.config.preference import PreferenceSection
from tests.unit.trainer.ppo import peer_sources
from trainer.preference import losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BETAS = (0.05, 0.3, 2.0)
EXACT = 1e-12


def log_probs(seed: int, scale: float) -> dict[str, Tensor]:
    """Log-probs of 16 preferred and other answers under policy and reference, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    found = {name: -scale * torch.rand(16, generator=generator, dtype=torch.float64) for name in names}
    masks = torch.arange(40) < torch.randint(1, 41, (32, 1), generator=generator)
    return found | {"completion_mask": masks.double()}


def ours(given: dict[str, Tensor], section: PreferenceSection) -> Tensor:
    policy = torch.cat([given["chosen_logps"], given["rejected_logps"]])
    reference = torch.cat([given["ref_chosen_logps"], given["ref_rejected_logps"]])
    change = losses.differences(policy, reference, given["completion_mask"].sum(1), section=section)
    return losses.pair_losses(
        losses.margins(change, [(pair, 16 + pair) for pair in range(16)]), section=section
    )


def of_openrlhf(folder: Path, given: dict[str, Tensor], beta: float) -> list[tuple[Tensor, Tensor]]:
    package = next(folder.glob("openrlhf-*.data/purelib/openrlhf"), folder / "openrlhf")
    known = {"nn": torch.nn, "F": torch.nn.functional, "Tuple": tuple}
    loss = peer_sources.compiled(package / "models/loss.py", {"DPOLoss"}, known).DPOLoss
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    found = []
    for smoothing in (0.0, 0.2):
        section = PreferenceSection(beta=beta, label_smoothing=smoothing)
        theirs = loss(beta, smoothing)(*(given[name] for name in names))[0]
        found.append((ours(given, section).mean(), theirs))
    # Its trainer averages log-probs over tokens for IPO.
    chosen, rejected = given["completion_mask"].sum(1).chunk(2)
    averaged = [given[name] / count for name, count in zip(names, (chosen, rejected) * 2, strict=True)]
    section = PreferenceSection(loss="ipo", beta=beta)
    return [*found, (ours(given, section).mean(), loss(beta, ipo=True)(*averaged)[0])]


def of_trl(folder: Path, given: dict[str, Tensor], beta: float) -> list[tuple[Tensor, Tensor]]:
    path = folder / "trl/trainer/dpo_trainer.py"
    texts = [
        peer_sources.excerpt(path, 'if loss_type == "sigmoid":', 'elif loss_type == "exo_pair":'),
        peer_sources.excerpt(path, 'elif loss_type == "sigmoid_norm":', "raise ValueError("),
    ]
    second = texts[1].removeprefix("el").rpartition("else:")[0]
    chosen = given["chosen_logps"] - given["ref_chosen_logps"]
    rejected = given["rejected_logps"] - given["ref_rejected_logps"]
    found = []
    for text, theirs, name in (
        (texts[0], "sigmoid", "sigmoid"),
        (texts[0], "ipo", "ipo"),
        (second, "sigmoid_norm", "length_normalised"),
    ):
        space = {
            "F": torch.nn.functional,
            "torch": torch,
            "self": SimpleNamespace(beta=beta),
            "loss_type": theirs,
            "chosen_scores": chosen,
            "rejected_scores": rejected,
            "delta_score": chosen - rejected,
            "completion_mask": given["completion_mask"],
        }
        exec(text, space)
        found.append((ours(given, PreferenceSection(loss=name, beta=beta)), space["per_sequence_loss"]))
    return found


def of_trls_kto(folder: Path, given: dict[str, Tensor], beta: float) -> list[tuple[Tensor, Tensor]]:
    text = peer_sources.excerpt(
        folder / "trl/trainer/kto_trainer.py", "# Chosen losses", 'self._metrics[mode]["kl"]'
    )
    section = PreferenceSection(loss="kto", beta=beta, desirable_weight=1.5, undesirable_weight=0.7)
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    found = []
    for mean in (-3.0, 0.0, 2.5):
        baseline = torch.tensor(losses.kto_baseline(mean), dtype=torch.float64)
        space = {
            "F": torch.nn.functional,
            "torch": torch,
            "self": SimpleNamespace(beta=beta, loss_type="kto", **weights),
            "kl": torch.tensor(mean, dtype=torch.float64).clamp(min=0),
            **given,
        }
        exec(text, space)
        change = torch.cat(
            [
                given["chosen_logps"] - given["ref_chosen_logps"],
                given["rejected_logps"] - given["ref_rejected_logps"],
            ]
        )
        good = torch.arange(32) < 16
        found.append((losses.kto_losses(change, good, baseline, section=section), space["losses"]))
    return found


def compare(folder: Path) -> int:
    """Compare everything and return how many tensors were."""
    count = 0
    for seed in range(8):
        for scale in (1.0, 30.0, 3_000.0):
            given = log_probs(seed, scale)
            for beta in BETAS:
                for peer in (of_openrlhf, of_trl, of_trls_kto):
                    for found, expected in peer(folder, given, beta):
                        assert torch.allclose(found, expected, rtol=EXACT, atol=EXACT), (
                            peer,
                            seed,
                            scale,
                            beta,
                        )
                        count += 1
    return count


def test_losses_equal_those_of_openrlhf_and_trl(tmp_path):
    folder = peer_sources.download(tmp_path)
    if isinstance(folder, str):
        pytest.skip(folder)
    assert compare(folder) == 8 * 3 * len(BETAS) * 9
