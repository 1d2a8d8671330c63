"""Data sets of the Hub: streamed, or memory-mapped from the local cache, where a first use downloads them to."""

from collections.abc import Iterator
from contextlib import suppress

from smallm_hf.base.errors import UserError
from smallm_hf.base.hub_access import require_hub
from smallm_hf.data.configuration import Source
from smallm_hf.data.reading.formats import Found, parts_of
from smallm_hf.data.reading.rows import columns_read


def read_hub(how: Source, streaming: bool) -> Iterator[Found]:
    """Yields the rows of one split of a data set.

    Raises:
        UserError: the Hub does not answer or has no such data set, or a row has no text.
    """
    source, split, wanted = how.source, how.split, columns_read(how)
    rows = _load(source, how.configuration, split=split, revision=how.revision, streaming=streaming)
    if {*wanted} <= {*(rows.column_names or ())}:  # a stream may not know them
        rows = rows.select_columns(wanted)
    for number, row in enumerate(rows, start=1):
        parts = parts_of(row, how, source, number)
        yield f"{source}/{split}#{number}", {"data_set": source, "split": split, "row": number}, parts


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
