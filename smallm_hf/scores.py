"""What scripts/score.py does, once its line is read: scores models on a text, or on minimal pairs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from smallm_hf.base.settings import Loading, require_models
from smallm_hf.data.reading.files import local_files
from smallm_hf.evaluation.configuration import MinimalPairs, ScoringQuestions
from smallm_hf.evaluation.pair_files import read_paradigms


def score_and_report(
    questions: ScoringQuestions,
    loading: Loading,
    pairs: MinimalPairs,
    *,
    model: Sequence[str],
    data: str | None = None,
    against: str | None = None,
    output: str | None = None,
    report: str | None = None,
) -> None:
    """Scores every model, prints what came out, and writes JSON and a page where they are named.

    Args:
        questions: what is asked of a text; of these, pairs know `context_length` and `batch_size`.
        loading: how the models are loaded.
        pairs: where minimal pairs are, if any.
        model: folders or Hub ids; folders also as patterns.
        data: the text, where there are no pairs.
        against: the model that the others are compared with.
        output: a JSON file.
        report: an HTML page.

    Raises:
        UserError: what was asked for does not go together or is not there, before torch is imported; or what scoring
            raises.
    """
    pairs.require_alone(data, against, questions, loading)
    require_models(model)
    if pairs.minimal_pairs:
        paradigms = read_paradigms(pairs.minimal_pairs, pairs.max_pairs)
    elif not Path(data).is_dir():
        local_files(data, questions.columns)

    from smallm_hf.training.devices import hardware

    reported = {"model": model, "output": output, "report": report}
    if pairs.minimal_pairs:
        from smallm_hf.evaluation.minimal_pairs import judge_and_report

        judge_and_report(paradigms, pairs, questions, asdict(loading), hardware, **reported)
        return
    from smallm_hf.evaluation.model_scores import evaluate_and_report

    draw = None
    if report:
        from smallm_hf.pictures.drawing import gallery as draw  # matplotlib
    evaluate_and_report(questions, asdict(loading), hardware, draw, data=data, against=against, **reported)
