"""Count the lengths again: `python -m benchmarks.lengths RANKINGS.jsonl.gz`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import lengths


def main() -> None:
    """Write one line per prompt."""
    parser = argparse.ArgumentParser(prog="benchmarks.lengths", description=lengths.__doc__)
    parser.add_argument("rankings", type=Path, help='lines of {"prompt", "responses": [{"text"}]}')
    rows = lengths.count(parser.parse_args().rankings)
    lengths.FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} prompts, {sum(map(len, rows)) - len(rows)} responses: {lengths.FILE}")


if __name__ == "__main__":
    main()
