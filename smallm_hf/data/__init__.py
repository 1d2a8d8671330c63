"""From sources to batches: documents -> cleaning -> selection -> preparing (token files) -> batching (windows)."""
