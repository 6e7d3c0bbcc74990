"""Hugging Face folders as GGUF sees them: tensors renamed, reordered and stacked as they are read, vocabularies."""
