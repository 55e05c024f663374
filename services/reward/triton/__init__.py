"""Reward models on Triton or KServe: scoring through such a server, and exporting models to one."""
