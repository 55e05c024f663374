"""The command line: one file per group of verbs. Starts processes, never imports them."""
