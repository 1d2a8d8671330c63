"""From sources to batches: documents -> splitting -> packing (token files) -> batching (windows in order)."""
