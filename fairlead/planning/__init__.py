"""What a run will take before it starts: memory of every process, room on the disk. Reads no weights."""
