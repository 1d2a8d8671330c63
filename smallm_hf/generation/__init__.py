"""Writes texts: one engine for samples in training, the terminal, the comparison and whatever serves a model."""
