"""The gateway: HTTP in the dialects that clients already speak, gRPC to the services."""
