"""Files made of snapshots, and judgments that come from other tools."""
