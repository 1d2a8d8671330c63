"""Language models side by side: the same prompts and the same text to each, figures that can be laid next to others."""
