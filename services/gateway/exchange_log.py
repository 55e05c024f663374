"""A log of prompts and answers for later ranking: JSON lines that `fairlead score` and `data.prompts` read.

Each line is one append: lines of several writers do not mix, and a crash loses at most the last line.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from fairlead.config.http import GatewaySection
from fairlead.errors import ConfigError
from fairlead.types import Completion, Message, SamplingParams

logger = logging.getLogger(__name__)

_MAX_BYTES = 64 << 20
"""Size at which the file is rotated: an editor still opens it. `gateway.chat_log_files` limits the total."""


class ExchangeLog:
    """The log file and its rotated predecessors."""

    def __init__(self, section: GatewaySection, *, max_bytes: int = _MAX_BYTES) -> None:
        """
        Args:
            section: its `chat_log` and `chat_log_files`.
            max_bytes: size at which the file is rotated.

        Raises:
            ConfigError: the file cannot be opened for writing.
        """
        self._path = Path(section.chat_log.replace("{pid}", str(os.getpid())))
        self._max_bytes = max_bytes
        self._max_files = section.chat_log_files
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise ConfigError(
                "gateway.chat_log",
                got=f"{self._path} ({error.strerror})",
                allowed="a file that can be written",
            ) from error
        self._size = os.fstat(self._file).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def add(
        self,
        request_id: str,
        prompt: Sequence[Message],
        completions: Sequence[tuple[str, Completion]],
        sampling: SamplingParams,
    ) -> None:
        """Append an exchange. If the disk refuses it, log that; the request does not fail.

        Args:
            request_id: id of the request.
            prompt: the turns of the conversation.
            completions: each with its text as it was sent to the caller.
            sampling: the sampling parameters.
        """
        entry = {
            "time": time.time(),
            "request_id": request_id,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in prompt],
            "responses": [_response(text, completion) for text, completion in completions],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        line = json.dumps(entry, ensure_ascii=False).encode(errors="replace") + b"\n"
        try:
            if self._size and self._size + len(line) > self._max_bytes:
                self._rotate()
            self._size += os.write(self._file, line)
        except OSError as error:
            logger.error("cannot write to the chat log %s: %s", self._path, error)

    def _open(self) -> int:
        # Only the owner may read what people wrote.
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _rotate(self) -> None:
        """Rename `log` to `log.1`, `log.1` to `log.2` and so on; the oldest file is deleted."""
        names = [self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._max_files + 1)]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.exists():
                newer.replace(older)
        self._path.replace(names[0])
        os.close(self._file)
        self._file = self._open()
        self._size = 0


def _response(text: str, completion: Completion) -> dict[str, object]:
    return {
        "text": text,
        "finish_reason": completion.finish_reason.value if completion.finish_reason else None,
        "num_tokens": len(completion.token_ids),
        "weight_versions": list(dict.fromkeys(str(span.version) for span in completion.version_spans)),
    }
