"""Text to batches: sources -> tokenizer -> corpus (one token stream a split, on disk) -> batches = f(seed, step)."""
