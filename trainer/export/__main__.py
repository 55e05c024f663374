"""`python -m trainer.export RUN DIR`, started by `fairlead export`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from fairlead import log
from fairlead.errors import FairleadError, exit_code
from trainer.export.export import PARTS, ExportOptions, export


def main(argv: Sequence[str] | None = None) -> int:
    """Export the models of a run; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export", description="Export the models of a run."
    )
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("target", type=Path, help="the new folder")
    parser.add_argument("--which", default="last", help="last, best, ema, sft or a version such as 1-20")
    parser.add_argument("--only", choices=PARTS, default=None, help="export only this part")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--adapter", action="store_true", help="for a run with [ppo.lora]: only the adapter")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    options = parser.parse_args(argv)
    log.setup(style="human", level="WARNING")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        summaries = export(
            ExportOptions(
                run=options.run,
                target=options.target,
                which=options.which,
                parts=(options.only,) if options.only else PARTS,
                dtype=options.dtype,
                adapter=options.adapter,
                force=options.force,
            )
        )
    except FairleadError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code(error)
    for part, summary in summaries.items():
        sys.stdout.write(f"{options.target / part}: {summary}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
