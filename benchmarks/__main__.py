"""Measure ratios between things that run side by side: `python -m benchmarks [NAME ...]`.

Without names the short benchmarks run. `services` takes some minutes, `trl` most of an hour, and both need a
quickstart, which is run first if there is none. The JSON file has value, unit, baseline and ratio of each
result.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks.result import OUT, QUICKSTART, Result, Settings
from fairlead.errors import FairleadError
from fairlead.nn.loading import torch_device

SHORT = {
    "scoring": "benchmarks.scoring",
    "generation": "benchmarks.generation",
    "reference": "benchmarks.reference",
}
"""Module of each benchmark; its function `run(settings)` returns results by name."""
TUNING = {
    "logprobs": "benchmarks.logprobs",
    "micro_batches": "benchmarks.micro_batches",
    "batching": "benchmarks.batching",
    "shared_prompts": "benchmarks.shared_prompts",
    "labeler_flags": "benchmarks.labeler_flags",
}
"""They decide constants of the code and are repeated only when that code changes."""
LONG = {
    "engines": "benchmarks.engines",
    "weights": "benchmarks.weights",
    "ranks": "benchmarks.ranks",
    "rank_memory": "benchmarks.rank_memory",
    "overload": "benchmarks.overload",
    "feedback": "benchmarks.feedback",
    "stages": "benchmarks.stages",
    "services": "benchmarks.services",
    "compiled_training": "benchmarks.compiled_training",
    "triton": "benchmarks.triton_baselines",
    "traces": "benchmarks.traces",
    "determinism": "benchmarks.determinism",
    "methods": "benchmarks.methods",
    "vllm": "benchmarks.vllm_learning",
    "pareto": "benchmarks.pareto",
    "overoptimization": "benchmarks.overoptimization",
    "lost_tasks": "benchmarks.lost_tasks",
    "mixed_feedback": "benchmarks.mixed_feedback",
    "trl": "benchmarks.against_trl",
    "trl_smollm2": "benchmarks.against_trl.smollm2",
    "scale": "benchmarks.scale",
    "endurance": "benchmarks.endurance",
    "replica_death": "benchmarks.replica_death",
    "scoring_memory": "benchmarks.scoring_memory",
    "vocabulary_memory": "benchmarks.vocabulary_memory",
}
"""Complete runs, which take minutes."""
ALL = SHORT | TUNING | LONG


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print a table and write JSON; return the exit code, 2 if something could not be measured."""
    options = _flags(argv)
    if options.gpu and not torch.cuda.is_available():
        print("no GPU here: nothing to measure")
        return 0
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = torch_device("cuda" if options.gpu else "cpu")
    settings = Settings(device, options.quick, options.run, options.minutes)
    results: dict[str, Result] = {}
    code = 0
    for name in options.names or SHORT:
        print(f"running {name} …", file=sys.stderr, flush=True)
        try:
            results |= importlib.import_module(ALL[name]).run(settings)
        except FairleadError as error:
            print(f"{name}: {error}", file=sys.stderr)
            code = 2
    if not results and code:
        return code  # the file of an earlier run stays
    if results:
        _show(results)
    file = options.json or OUT / f"{'-'.join(options.names) or 'benchmarks'}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = {
        name: {"value": r.value, "unit": r.unit, "baseline": r.baseline, "ratio": r.ratio}
        for name, r in results.items()
    }
    file.write_text(json.dumps(entries, indent=2) + "\n")
    print(f"written to {file}", file=sys.stderr)
    return code


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = f"any of {', '.join(ALL)}; without names {', '.join(SHORT)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--gpu", action="store_true", help="on the GPU; says so and ends where there is none")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which measure nothing")
    parser.add_argument("--run", type=Path, default=QUICKSTART, help="folder of a finished quickstart")
    parser.add_argument(
        "--minutes", type=float, help="time limit of benchmarks that have one, such as methods, vllm and trl"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"instead of {OUT}/NAMES.json")
    options = parser.parse_args(argv)
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g}: give more than 0")
    for name in options.names:
        if name not in ALL:
            parser.error(f"no benchmark {name!r}; there are {', '.join(ALL)}")
    return options


def _show(results: Mapping[str, Result]) -> None:
    """Return a table in Markdown."""
    table = Table("benchmark", "value", "baseline", "unit", "ratio", "limit", "baseline is", box=MARKDOWN)
    for name, result in results.items():
        table.add_row(
            name,
            f"{result.value:.4g}",
            f"{result.baseline:.4g}",
            result.unit,
            f"{result.ratio:.2f}",
            result.limit,
            result.what,
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
