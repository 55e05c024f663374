"""Names that a service and the processes of vLLM share."""

WORKER = "services.vllm.worker.ServiceWorker"
"""The class that vLLM adds to its workers."""
SERVICE_VARIABLE = "FAIRLEAD_SERVICE_PROCESS"
"""Environment variable with the process of the service, as `install.process_identity` returns it."""
