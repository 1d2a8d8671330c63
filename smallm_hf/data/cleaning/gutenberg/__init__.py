"""Rules for files of Project Gutenberg: what is not the text of the book."""
