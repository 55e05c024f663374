"""The policy service: generation with weights that are replaced while training continues."""
