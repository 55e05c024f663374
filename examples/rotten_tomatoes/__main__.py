"""Evaluate a finished run and print a table: `python -m examples.rotten_tomatoes [RUN.TOML]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.exit_codes import with_exit_code
from examples.plots import picture_file
from examples.rotten_tomatoes import outcome, picture
from fairlead import log
from fairlead.config import load, parse_overrides
from fairlead.errors import ConfigError
from trainer import durable

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "rotten_tomatoes.toml"


@with_exit_code
def main() -> None:
    """Read the flags and evaluate."""
    parser = argparse.ArgumentParser(prog="python -m examples.rotten_tomatoes", description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG, help="the run's TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument(
        "--picture", type=picture_file, default=None, help="file for a picture of the outcome, .svg or .png"
    )
    options = parser.parse_args()
    config = load(options.config, overrides=parse_overrides(options.set))
    log.setup(style="human", level=config.observe.log_level)
    if not config.folder.policy_model.is_dir():
        raise ConfigError("run", got=str(config.folder.root), allowed="a run whose PPO has finished")
    figures = outcome.measure(config)
    durable.write_json(config.folder.result("evaluation"), figures)
    print(outcome.table(figures))
    if options.picture is not None:
        picture.draw(config, figures, options.picture)


if __name__ == "__main__":
    raise SystemExit(main())
