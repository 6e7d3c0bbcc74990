"""Get a LoRA fine-tune onto a quantized model without losing it."""

__version__ = "0.1.0"
