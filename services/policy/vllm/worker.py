"""What runs in vLLM's workers: loading a version completely, and ending with the policy service.

vLLM imports this module in its worker processes by name and adds `WeightLoader` to its worker class. Imports
nothing of this project, so that a worker starts as fast as without it.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class _Worker:
        """The part of vLLM's worker that is used here."""

        model_runner: Any

        def reload_weights(self, *, weights_path: str) -> None:
            """Load the weights of a folder into the model."""

else:
    _Worker = object

_CHECK_SECONDS = 1.0


class WeightLoader(_Worker):
    """Methods that the policy service calls in every worker."""

    def load_version(self, weights_path: str) -> None:
        """Load the weights of a folder; on a CPU, also into the packed copy of a tied output layer.

        vLLM's CPU build packs linear layers when they are loaded. A tied output layer has no tensor of its
        own in a checkpoint, so a reload would leave its packed copy as it was, without an error.
        """
        self.reload_weights(weights_path=weights_path)
        for layer in self.model_runner.get_model().modules():
            if type(layer).__name__ == "ParallelLMHead" and layer.weight.device.type == "cpu":
                layer.quant_method.process_weights_after_loading(layer)


def _end_with_the_service() -> None:
    """End this worker when the policy service that it belongs to has ended; vLLM's engine then ends, too.

    Only a process that ends normally stops its workers; after SIGKILL they would keep their memory.
    """
    identity = os.environ.get("FAIRLEAD_POLICY_PROCESS", "")
    pid, _, started = identity.partition(":")

    def watch() -> None:
        while True:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                os._exit(0)
            if fields[19] != started or fields[0] == "Z":
                os._exit(0)
            time.sleep(_CHECK_SECONDS)

    if pid:
        threading.Thread(target=watch, name="policy-service", daemon=True).start()


_end_with_the_service()
