"""What the backends for GPUs share: weights as they are stored, adapters by slot, pages of keys and values."""
