"""The Open Inference Protocol of KServe and Triton, once for gRPC and HTTP."""
