"""Continuous batching: requests with different adapters, lengths and settings share every pass through one model."""
