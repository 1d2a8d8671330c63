"""Tokenizers, trained or given, and texts as their ids."""
