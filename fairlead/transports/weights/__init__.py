"""Policy weights from the trainer to the replicas: the store, its manifests, and how replicas fetch."""
