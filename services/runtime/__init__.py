"""What every service has: server, interceptors, batching."""
