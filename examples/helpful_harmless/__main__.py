"""Evaluate a finished run and print its tables: `python -m examples.helpful_harmless [RUN.TOML]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.exit_codes import with_exit_code
from examples.helpful_harmless import outcome, picture, tables
from examples.helpful_harmless.baselines import CONFIG
from examples.plots import picture_file
from fairlead import log
from fairlead.config import load, parse_overrides
from fairlead.errors import ConfigError
from trainer import durable

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@with_exit_code
def main() -> None:
    """Read the flags and evaluate."""
    parser = argparse.ArgumentParser(prog="python -m examples.helpful_harmless", description=__doc__)
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=CONFIG,
        help="the run's TOML file",
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        help="folder with alpaca_eval and rotten_tomatoes, which the capability is measured on",
    )
    parser.add_argument(
        "--untuned",
        action="store_true",
        help="only ask the untuned policy, whose answers are kept for the evaluation; it needs no run",
    )
    parser.add_argument("--picture", type=picture_file, default=None, help="file for a picture, .svg or .png")
    options = parser.parse_args()
    config = load(options.config, overrides=parse_overrides(options.set))
    log.setup(style="human", level=config.observe.log_level)
    if options.untuned:
        outcome.ask_untuned(config, options.data)
        return
    if not config.folder.policy_model.is_dir():
        raise ConfigError("run", got=str(config.folder.root), allowed="a run whose PPO has finished")
    figures = outcome.measure(config, options.data)
    durable.write_json(config.folder.result("evaluation"), figures)
    sys.stdout.write(f"{tables.markdown(figures)}\n")
    if options.picture is not None:
        picture.draw(config, figures, options.picture)


if __name__ == "__main__":
    raise SystemExit(main())
