"""A recipe of a few seconds and its text."""

from pathlib import Path

import pytest
from running import write_recipe, write_stories

pytest.register_assert_rewrite("forked")


@pytest.fixture(scope="session")
def stories(tmp_path_factory) -> Path:
    return write_stories(tmp_path_factory.mktemp("stories"))


@pytest.fixture
def recipe(tmp_path, stories) -> Path:
    return write_recipe(tmp_path, stories, training={"log_every": 2})
