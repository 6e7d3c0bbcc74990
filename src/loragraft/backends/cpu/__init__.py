"""The backend that runs graphs on the native core's kernels."""
