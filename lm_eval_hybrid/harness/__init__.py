"""What `HybridLM` needs around decoding: arguments, prompts, requests, answers with their records, the cache's guard."""
