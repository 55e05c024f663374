"""Exit codes of the examples' commands: an error of Fairlead ends one with a line, not with a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from fairlead.errors import FairleadError

INVALID = 2

Arguments = ParamSpec("Arguments")


def failed(error: FairleadError | OSError, *, code: int = INVALID) -> int:
    """Write `error: …` to standard error and return the exit code."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
    sys.stderr.write(f"error: {text}\n")
    return code


def with_exit_code(main: Callable[Arguments, None]) -> Callable[Arguments, int]:
    """Return a command that ends with 0, or after an error of Fairlead or of a file with a line and 2."""

    @functools.wraps(main)
    def command(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        try:
            main(*args, **kwargs)
        except BrokenPipeError:
            raise  # the reader of standard output closed it, which is not an error
        except (FairleadError, OSError) as error:
            return failed(error)
        return 0

    return command
