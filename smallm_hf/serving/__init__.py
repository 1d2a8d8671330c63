"""Serves a model over HTTP: an OpenAI-compatible API, and what makes it safe to run."""
