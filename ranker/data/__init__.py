"""Data: from raw files and the made world to batches of static shape."""
