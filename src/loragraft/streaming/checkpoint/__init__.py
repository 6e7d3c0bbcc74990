"""The parts of `loragraft.export`: a model under Hugging Face's names, and the layouts of quantized checkpoints."""
