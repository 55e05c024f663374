"""What a run leaves for others: its models as `save_pretrained` folders that say where they come from."""
