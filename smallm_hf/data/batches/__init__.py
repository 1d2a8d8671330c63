"""From token files to batches: pure functions of seed and index."""
