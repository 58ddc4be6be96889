"""Data: from raw files and the synthetic collection to batches of static shape."""
