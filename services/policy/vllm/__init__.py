"""vLLM as the engine of the policy service; `engine.open_engine` is the entry point."""
