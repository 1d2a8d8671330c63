"""Experiments of many runs: a sweep over settings and seeds, and the ladder of model families on one text."""
