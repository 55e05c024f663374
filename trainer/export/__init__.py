"""Export of a run's models as `save_pretrained` folders with model cards."""
