"""Data sets of the Hub: streamed, or memory-mapped from the local cache, where a first use downloads them to."""

from collections.abc import Iterator
from contextlib import suppress

from smallm_hf.base.errors import UserError
from smallm_hf.base.hub_access import require_hub
from smallm_hf.data.reading.formats import Found, in_parts
from smallm_hf.data.reading.rows import text_of


def read_hub(source: str, configuration: str | None, split: str, text_column: str, **options) -> Iterator[Found]:
    """Yields the rows of one split; `options` are those of `datasets.load_dataset`.

    Raises:
        UserError: the Hub does not answer or has no such data set, or a row has no text.
    """
    rows = _load(source, configuration, split=split, **options)
    if text_column in (rows.column_names or ()):  # a stream may not know them
        rows = rows.select_columns([text_column])
    for number, row in enumerate(rows, start=1):
        text = text_of(row, text_column, source, number)
        yield f"{source}/{split}#{number}", {"data_set": source, "split": split, "row": number}, in_parts(text)


def _load(source: str, configuration: str | None, **options):
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    try:
        require_hub(
            f"data source {source} is not a file or folder here; as a Hub data set it",
            "give a local file or folder, --data.source PATH (and --data.validation_source PATH)",
        )
    except UserError:
        datasets.config.HF_HUB_OFFLINE = True  # the cache alone, without retries
        with suppress(Exception):  # it is not in the cache, however that shows
            return datasets.load_dataset(source, configuration, **options)
        raise
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    try:
        return datasets.load_dataset(source, configuration, **options)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"data source {source} is not a file or folder here, and as a Hub data set (configuration {configuration}, "
            f"split {options['split']}) it cannot be loaded: {reason}; check data.source, data.configuration, "
            "data.revision and data.split"
        ) from error
