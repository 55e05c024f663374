"""Runs every benchmark: `python -m benchmarks [NAME ...] [--gpu] [--json FILE]`.

A benchmark is a module with `run(device) -> {name: Result}`. The JSON file holds, for each name, value, unit,
baseline and ratio.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.result import Result

NAMES = ("logprobs", "batching", "generation")


def main() -> int:
    """Runs, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=[], help=f"which ones: {', '.join(NAMES)}; all by default"
    )
    parser.add_argument("--gpu", action="store_true", help="on the GPU; says so and ends where there is none")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/out/benchmarks.json"))
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    if arguments.gpu and not torch.cuda.is_available():
        print("no GPU here: nothing to measure")
        return 0
    device = torch.device("cuda" if arguments.gpu else "cpu")
    results: dict[str, Result] = {}
    for name in arguments.names or NAMES:
        print(f"running {name} …", file=sys.stderr)
        results |= importlib.import_module(f"benchmarks.{name}").run(device)
    table = Table("benchmark", "value", "unit", "baseline", "ratio", "baseline is")
    for name, result in results.items():
        table.add_row(
            name,
            f"{result.value:.4g}",
            result.unit,
            f"{result.baseline:.4g}",
            f"{result.ratio:.2f}",
            result.what,
        )
    Console().print(table)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    entries = {
        name: {"value": r.value, "unit": r.unit, "baseline": r.baseline, "ratio": r.ratio}
        for name, r in results.items()
    }
    arguments.json.write_text(json.dumps(entries, indent=2) + "\n")
    print(f"written to {arguments.json}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
