import json

import pytest

from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks import showing


def test_all_that_was_measured_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(showing.SHOWN, "size", lambda megabytes, **given: {"megabytes": megabytes})
    showing.show("size", tmp_path / "new" / "size.json", megabytes=3.0, source="books")
    assert json.loads((tmp_path / "new" / "size.json").read_text()) == {"megabytes": 3.0}


def test_what_could_not_be_written_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(showing.SHOWN, "size", lambda **given: pytest.fail("measured"))
    with pytest.raises(UserError, match="is a folder; give another --output"):
        showing.show("size", tmp_path)
