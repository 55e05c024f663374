"""Who may call a service, and how much: API keys, scopes, rates and quotas."""
