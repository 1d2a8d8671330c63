import json
import os

import pytest

from smallm_hf.base.errors import UserError
from smallm_hf.data.configuration import DataConfig, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare
from smallm_hf.data.request import DataRequest
from smallm_hf.data.token_files import open_token_files


@pytest.fixture
def files(tmp_path):
    (tmp_path / "numbers.txt").write_text("\n<|endoftext|>\n".join(f"number {number}" for number in range(40)))
    data = DataConfig(source=str(tmp_path / "numbers.txt"), validation_ratio=0.2)
    return find_or_prepare(DataRequest(data, TokenizerConfig("bpe"), 258), tmp_path / "tokens", 64)


def test_opened_again_they_are_what_was_prepared(files):
    opened = open_token_files(files.folder)
    assert opened.meta == files.meta
    assert (opened.train == files.train).all()
    opened.verify()


def test_truncated_token_files_are_refused(files):
    size = (files.folder / "train.bin").stat().st_size
    os.truncate(files.folder / "train.bin", size - 2)
    with pytest.raises(UserError, match=rf"train.bin has {size - 2} bytes, its meta.json says {size}: it is truncated"):
        open_token_files(files.folder)


def test_token_files_that_were_changed_are_refused(files):
    content = bytearray((files.folder / "validation.bin").read_bytes())
    content[3] ^= 1
    (files.folder / "validation.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"validation.bin has sha256 \w{12}, its meta.json says \w{12}: it was changed"):
        open_token_files(files.folder).verify()


def test_a_folder_without_token_files_is_not_opened(tmp_path):
    with pytest.raises(UserError, match=r"holds no token files \(no meta.json\); make them with smallm prepare"):
        open_token_files(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(UserError, match=r"token files of format 1, this version reads 3"):
        open_token_files(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 2')
    with pytest.raises(UserError, match=r"meta.json is damaged"):
        open_token_files(tmp_path)
