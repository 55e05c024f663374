"""What all services share: the process, the gRPC server, its edge, access control, error replies, streams."""
