"""Scores of language models.

A text's way from `scripts/score.py` to a figure: `model_scores` asks each model, `scoring` cuts the text into
`windows`, `readers` give the logits of its tokens, `sums` divides once, `results_page` shows the figure.
"""
