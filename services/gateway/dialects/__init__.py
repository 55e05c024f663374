"""The HTTP dialects of the gateway, one router each: Fairlead, OpenAI, OpenRLHF, vLLM, Open Inference."""
