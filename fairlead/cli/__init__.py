"""The command line: one file per group of verbs. It starts processes and never imports their code."""
