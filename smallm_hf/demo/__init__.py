"""A page on which a model is tried: it writes, shows its choices, and lets one look inside."""
