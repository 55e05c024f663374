"""The weight store: published by the trainer, fetched by the policy replicas."""
