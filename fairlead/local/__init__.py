"""Every process of a run on one machine: supervisor, embedded Valkey, live view."""
