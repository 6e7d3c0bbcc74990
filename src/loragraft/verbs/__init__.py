"""What the commands do, as functions: one module each."""
