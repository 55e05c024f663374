"""What runs in vLLM's workers of the policy service: loading a version completely.

vLLM imports this module in its worker processes by name and adds `WeightLoader` to its worker class. Imports
little of this project, so that a worker starts as fast as without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.vllm.worker import ServiceWorker

if TYPE_CHECKING:

    class _Worker(ServiceWorker):
        """The part of vLLM's worker that is used here."""

        def reload_weights(self, *, weights_path: str) -> None:
            """Load the weights of a folder into the model."""

else:
    _Worker = ServiceWorker


class WeightLoader(_Worker):
    """Methods that the policy service calls in every worker."""

    def load_version(self, weights_path: str) -> None:
        """Load the weights of a folder; on a CPU, pack again what vLLM packs at the first load only.

        vLLM's CPU build packs the weights of layers for its kernels. After a reload, without an error, a tied
        output layer, which has no tensor of its own in a checkpoint, keeps its old packed copy, and experts
        have plain weights where the kernel reads packed ones.
        """
        self.reload_weights(weights_path=weights_path)
        for layer in self.model_runner.get_model().modules():
            kind = type(layer).__name__
            if kind == "ParallelLMHead" and layer.weight.device.type == "cpu":
                layer.quant_method.process_weights_after_loading(layer)
            elif kind == "RoutedExperts" and layer.w13_weight.device.type == "cpu":
                layer.quant_method.moe_kernel.fused_experts.process_weights_after_loading(layer)
