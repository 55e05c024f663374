"""What runs in every process of vLLM: it ends with the service that it belongs to, and may scale logits.

vLLM imports this module in its worker processes by name and adds a class to its worker class. Imports little
of this project, so that a worker starts as fast as without it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from services.vllm import service_process

if TYPE_CHECKING:

    class _Worker:
        """The part of vLLM's worker that is used here."""

        model_runner: Any

else:
    _Worker = object

_CHECK_SECONDS = 1.0


class ServiceWorker(_Worker):
    """Methods that a service calls in every worker."""

    def divide_logits(self, temperature: float) -> None:
        """Divide all logits by a temperature, also those of log-probs of prompts, which ignore that of a
        request.
        """
        self.model_runner.get_model().logits_processor.scale /= temperature


def _end_with_the_service() -> None:
    """End this worker when the service that it belongs to has ended; vLLM's engine then ends, too.

    Only a process that ends normally stops its workers; after SIGKILL they would keep their memory.
    """
    service = os.environ.get(service_process.VARIABLE, "")

    def watch() -> None:
        while service_process.is_running(service):
            time.sleep(_CHECK_SECONDS)
        os._exit(0)

    if service:
        threading.Thread(target=watch, name="service", daemon=True).start()


_end_with_the_service()
