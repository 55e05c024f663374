"""A run in a Kubernetes cluster: render the manifests with the run's file, apply them, watch, take down.

`fairlead k8s` calls it. The processes are those of a run on one machine; their code is not imported here.
"""
