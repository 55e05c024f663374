"""Advantages, losses and weights against the functions of verl, OpenRLHF and TRL themselves.

One slow test; it prints a table of the largest differences (`pytest -m slow -s`). Where a peer deviates on
purpose, its result is converted, and the comparison says how.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.unit.trainer.ppo import peer_sources
from tests.unit.trainer.ppo.peer_advantages import (
    advantages_of_openrlhf,
    advantages_of_trl,
    advantages_of_verl,
)
from tests.unit.trainer.ppo.peer_cases import Table, cases
from tests.unit.trainer.ppo.peer_losses import (
    kl_and_weights,
    lengths,
    losses_of_openrlhf,
    losses_of_trl,
    losses_of_verl,
)


@pytest.mark.slow
def test_formulas_equal_those_of_verl_openrlhf_and_trl(tmp_path, capsys):
    folder = peer_sources.download(tmp_path)
    if isinstance(folder, str):
        pytest.skip(folder)
    peers = SimpleNamespace(
        verl=peer_sources.verl(folder), openrlhf=peer_sources.openrlhf(folder), trl=peer_sources.trl(folder)
    )
    table = Table({})
    for where, given in cases():
        for compare in (
            advantages_of_verl,
            advantages_of_openrlhf,
            advantages_of_trl,
            losses_of_verl,
            losses_of_openrlhf,
            losses_of_trl,
            kl_and_weights,
            lengths,
        ):
            compare(peers, given, table, where)
    with capsys.disabled():
        print(f"\n{table}")  # noqa: T201
    wrong = {key: row for key, row in table.rows.items() if not row[0] <= row[2]}
    assert not wrong
