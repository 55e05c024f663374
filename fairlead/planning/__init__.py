"""The resources that a run will need, before it starts: memory of every process, and disk space. Reads no
weights.
"""
