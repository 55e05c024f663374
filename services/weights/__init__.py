"""The weights service: versions of the policy over gRPC, where there is no shared volume."""
