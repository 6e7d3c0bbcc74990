"""The one pass that writes a model: what to write (plan), row by row (pipeline), into which files (model_writer)."""
