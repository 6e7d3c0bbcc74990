"""Models that run: loading, tokens, sampling, generation, perplexity."""
