"""What `HybridLM` needs around decoding: arguments, prompts, requests, answers with records, the cache's guard."""
