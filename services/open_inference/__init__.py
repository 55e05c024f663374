"""The Open Inference Protocol v2 of KServe and Triton, for both of its transports, gRPC and HTTP.

The reward service's servicer and the gateway's router only take messages apart and put them together.
"""
