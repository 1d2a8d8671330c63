"""Scores of language models.

A text's way from `scripts/score.py` to a figure: `model_scores` asks each model, `scoring` cuts the text into
`windows`, `readers` give the logits of its tokens, `sums` divides once, `results_page` shows the figure. Minimal pairs
come from `pair_files`, `minimal_pairs` judges them by the same way of scoring, `minimal_pairs_page` shows the verdicts.
"""
