"""The table of statistics: complete, and consistent with the names that the trainer uses."""

from __future__ import annotations

from fairlead.config.guard import GuardSection
from fairlead.metrics import PHASES, statistics
from trainer.ppo import signals
from trainer.ppo.losses import FIGURES_OF_PAIRS


def test_every_statistic_of_the_guard_and_of_pairs_is_in_the_table():
    names = [f"guard_{signal}" for signal in (*signals.SIGNALS, signals.OVERCONFIDENCE)]
    for name in (*names, *FIGURES_OF_PAIRS, *(f"seconds_{phase}" for phase in PHASES)):
        assert statistics.find(name) is not None, name


def test_names_are_unique_and_signals_have_limits():
    names = [statistic.name for statistic in statistics.STATISTICS]
    assert len(names) == len(set(names))
    for statistic in statistics.STATISTICS:
        if statistic.signal:
            assert any(field.startswith(f"{statistic.signal}_") for field in GuardSection.model_fields)


def test_members_of_families_have_titles_of_their_own():
    term = statistics.find("term_variety")
    assert term is not None
    assert (term.name, term.title) == ("term_variety", "Term of the reward: variety")
    heldout = statistics.find("heldout_margin")
    assert heldout is not None
    assert heldout.title == "Held-out: margin of pairs"
    assert statistics.find("nothing") is None
