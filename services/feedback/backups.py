"""Forget in backups of a SQLite store: `python -m services.feedback.backups`, asked in JSON on stdin.

`{"kind": "person", "name": "…", "actor": "…", "files": ["feedback-backup.db"]}`. A backup has the ids of the
store that it is of. The result of each file is a line on standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fairlead.errors import ConfigError, FairleadError, NotFound, Unavailable
from services.feedback.store import open_store


def forget_in(files: Sequence[Path], kind: str, name: str, *, actor: str) -> list[str]:
    """Forget in every file, and return a line about each.

    Args:
        files: SQLite files that nothing else uses.
        kind: `person`, `user` or `prompt`.
        name: id of the person or prompt, or the end user as collected prompts named them.
        actor: who asks for it.

    Raises:
        ConfigError: there is no such file.
        CorruptData: a file is no store, or its log does not verify.
        Unavailable: something else uses a file.
    """
    for path in files:
        if not path.is_file():
            raise ConfigError("--backup", got=str(path), allowed="a file that is there")
    return [_forget(path, kind, name, actor) for path in files]


def _forget(path: Path, kind: str, name: str, actor: str) -> str:
    with open_store(str(path)) as store:
        try:
            asked = ("subject", store.subject(name)) if kind == "user" else (kind, name)
            found = store.erasures.forget(*asked, actor=actor)
            done = f"{found.entries} entries erased"
        except NotFound:
            done = "nothing to erase"
        if not store.erasures.scrub():
            raise Unavailable(f"{path} is in use: it still holds what was erased, so forget there again")
        return f"{path}: {done}, {store.log.verify().head.seq} entries verify"


def main() -> int:
    """Answer the request on standard input."""
    asked = json.load(sys.stdin)
    files = [Path(one) for one in asked["files"]]
    try:
        lines = forget_in(files, asked["kind"], asked["name"], actor=asked["actor"])
    except FairleadError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
