"""The policy service: generation with weights that are swapped as training goes on."""
