"""A run in a cluster: renders the manifests with the run's file, applies them, watches, takes them down.

What `fairlead k8s` calls. The processes are those of a run on one machine; nothing of them is imported here.
"""
