"""The backend that runs graphs on a GPU by torch and Triton: CUDA, ROCm or XPU (extra `cuda`)."""
