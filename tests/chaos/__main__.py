"""`python -m tests.chaos --seeds 3 --faults 40`: runs under faults, one per seed; writes `summary.json`.

Every second seed trains with staleness 2, the others synchronously. Of three seeds, one gets weights from a
folder, one over gRPC, one over direct connections. Exits with 1 if a guarantee was broken.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import tests.conftest  # noqa: F401 - few threads, no hub, a clean environment
from tests.chaos import chaos
from tests.chaos.faults import Fault, schedule
from tests.chaos.findings import Findings, summary
from tests.integration.ppo_run import BATCH, DYNAMIC_SAMPLING


def _run(folder: Path, *, seed: int, faults: int, further: Mapping[str, object]) -> Findings:
    def plan(processes: Sequence[str], links: Sequence[str]) -> list[Fault]:
        return schedule(seed, count=faults, processes=processes, links=links)

    return chaos.run(
        folder,
        plan,
        seed=seed,
        # Enough for the schedule, plus some that pass before a fault takes effect.
        updates=30 + 6 * faults,
        max_staleness=2 * (seed % 2),
        weights=("filesystem", "grpc", "direct")[seed % 3],
        further=further,
    )


def main() -> int:
    """Run the seeds one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of runs, one per seed")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=40, help="faults of each run")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of the trainer; each is a target, too")
    parser.add_argument("--samples", type=int, default=1, help="answers per prompt, as ppo.num_samples")
    parser.add_argument(
        "--dynamic-sampling", action="store_true", help="top up for groups without signal; needs --samples"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    further = {
        "ranks.per_node": options.ranks,
        "ppo.num_samples": options.samples,
        "ppo.batch_size": BATCH * options.samples,
        **(DYNAMIC_SAMPLING if options.dynamic_sampling else {}),
    }
    runs: list[Findings] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        folder = (options.out / f"seed-{seed}").absolute()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        logging.info("seed %d in %s", seed, folder)
        try:
            runs.append(_run(folder, seed=seed, faults=options.faults, further=further))
        except chaos.Stuck as error:
            runs.append(Findings(seed, options.faults, problems=[str(error)]))
        found = summary(runs)
        (options.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    shown = {name: value for name, value in found.items() if name != "each"}
    sys.stdout.write(json.dumps(shown, indent=1) + "\n")
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
