"""The people of parcel help, simulated: for `fairlead iterate --with-simulated-labelers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from examples.parcel_help.habits import HabitualLabeler

NUM_TRAIN = 6
NUM_HELDOUT = 2
NUM_ALIKE = 2
"""More would not rank faster: they wait for one service."""


def people(*, seed: int) -> Mapping[str, Sequence[HabitualLabeler]]:
    """Return honest labelers with the noise of the quickstart's, by cohort."""
    return {
        cohort: [HabitualLabeler(f"{cohort}-{place}", seed=seed) for place in range(count)]
        for cohort, count in (("train", NUM_TRAIN), ("heldout", NUM_HELDOUT))
    }


def alike(*, seed: int) -> Mapping[str, Sequence[HabitualLabeler]]:
    """Return labelers of whom each says the same about a task: those of the quickstart.

    The rankings of a round then do not depend on who is faster.
    """
    return {"train": [HabitualLabeler(f"labeler-{n}", seed=seed, noise_of="task") for n in range(NUM_ALIKE)]}
