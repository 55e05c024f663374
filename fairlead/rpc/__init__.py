"""Everything between a client and the wire: channels, replicas, retries, hedging, TLS, API keys."""
