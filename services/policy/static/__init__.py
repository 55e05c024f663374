"""Decoding with tensors of fixed shape and address, which a GPU replays as CUDA graphs; `choice.py` decides.

A step has a fixed number of rows and attends to a fixed number of columns, so that all steps of the same two
numbers are the same kernels on the same memory. Without a GPU the same code runs eagerly, for tests.
"""
