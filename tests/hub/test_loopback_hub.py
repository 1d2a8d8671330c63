"""The Hub of our own answers the real client as the real Hub does."""

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import connected_hub
from transformers.utils.hub import hf_api

CARD = "---\nlicense: mit\ntags: [x]\n---\n# Card\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "figures").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "figures" / "a.svg").write_text("<svg/>")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    return folder


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi()


def test_a_folder_comes_back_as_it_was_pushed(hub, api, folder, tmp_path):
    assert api.create_repo("user/model") == f"{hub.url}/user/model"
    api.upload_folder(repo_id="user/model", folder_path=folder)
    info = api.model_info("user/model")
    assert {sibling.rfilename for sibling in info.siblings} >= {"README.md", "figures/a.svg", "model.safetensors"}
    assert (info.card_data.license, info.tags, info.private) == ("mit", ["x"], False)
    pulled = api.snapshot_download("user/model", cache_dir=tmp_path / "cache")
    for name in ("README.md", "figures/a.svg", "model.safetensors"):
        assert Path(pulled, name).read_bytes() == (folder / name).read_bytes(), name
    assert api.hf_hub_download("user/model", "README.md", cache_dir=tmp_path / "other") is not None


def test_large_files_go_to_the_store_and_small_ones_into_the_commit(hub, api, folder):
    api.create_repo("user/model")
    api.upload_folder(repo_id="user/model", folder_path=folder)
    files = {file.path: file for file in api.list_repo_tree("user/model", recursive=True)}
    assert files["model.safetensors"].lfs.size == 256_000 and files["README.md"].lfs is None
    assert files["figures"].tree_id and len(hub.objects) == 1
    assert [file.path for file in api.get_paths_info("user/model", ["README.md", "none"])] == ["README.md"]


def test_a_deleted_file_is_gone_and_its_commit_still_has_it(api, folder, tmp_path):
    api.create_repo("user/model")
    first = api.upload_folder(repo_id="user/model", folder_path=folder).oid
    api.create_commit("user/model", [CommitOperationDelete("README.md")], commit_message="delete")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("user/model", "README.md", cache_dir=tmp_path)
    assert api.hf_hub_download("user/model", "README.md", revision=first, cache_dir=tmp_path)


def test_tags_and_branches_are_made_moved_and_deleted(api, folder):
    api.create_repo("user/model")
    start = api.model_info("user/model").sha
    api.upload_folder(repo_id="user/model", folder_path=folder)
    api.create_tag("user/model", tag="one")
    api.create_branch("user/model", branch="side", revision=start)
    refs = api.list_repo_refs("user/model")
    assert {ref.name: ref.target_commit for ref in refs.branches}["side"] == start
    assert {ref.name: ref.target_commit for ref in refs.tags}["one"] == api.model_info("user/model").sha
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("user/model", tag="one")
    api.create_tag("user/model", tag="one", exist_ok=True)
    api.delete_tag("user/model", tag="one")
    api.delete_branch("user/model", branch="side")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("user/model", revision="one")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_branch("user/model", branch="main")


def test_a_repository_is_made_once(api):
    api.create_repo("user/model")
    with pytest.raises(HfHubHTTPError, match=r"409(.|\n)*You already created this model repo"):
        api.create_repo("user/model")
    assert api.create_repo("user/model", exist_ok=True).repo_id == "user/model"
    api.create_repo("user/model", repo_type="dataset")


def test_who_may_not_write_is_refused(hub, api, folder):
    api.create_repo("user/model")
    with pytest.raises(HfHubHTTPError, match=r"403(.|\n)*You don't have the rights to create a model under the"):
        api.create_repo("other/model")
    with pytest.raises(HfHubHTTPError, match=r"403(.|\n)*create_pr=1"):
        api.upload_folder(repo_id="user/model", folder_path=folder, token="hf_reader")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_nobody")
    assert api.whoami(token="hf_reader")["auth"]["accessToken"]["role"] == "read"
    assert hub.bytes_received == 0


def test_a_private_repository_is_hidden_from_others(hub, api):
    api.create_repo("user/model", private=True)
    assert api.model_info("user/model").private
    hub.tokens["hf_other"] = ("other", "write")
    for token in (False, "hf_other"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("user/model", token=token)


def test_bad_metadata_is_refused_before_anything_is_sent(hub, api, folder):
    api.create_repo("user/model")
    (folder / "README.md").write_text("---\nlicense: mine\n---\n")
    with pytest.raises(ValueError, match='Invalid metadata in README.md.\n- "license" must be one of'):
        api.create_commit(
            "user/model", [CommitOperationAdd("README.md", str(folder / "README.md"))], commit_message="card"
        )
    assert hub.bytes_received == 0


def test_an_unchanged_push_sends_nothing(hub, api, folder):
    api.create_repo("user/model")
    first = api.upload_folder(repo_id="user/model", folder_path=folder)
    assert hub.bytes_received > 256_000
    hub.bytes_received = 0
    assert api.upload_folder(repo_id="user/model", folder_path=folder).oid == first.oid
    assert hub.bytes_received == 0


def test_an_upload_that_breaks_off_leaves_no_commit(hub, api, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    api.create_repo("user/model")
    hub.cut_uploads_after = 100_000
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model\.safetensors' to the Hub"):
        api.upload_folder(repo_id="user/model", folder_path=folder)
    assert hub.files("user/model") == {} and hub.objects == {}


def test_a_hub_on_the_port_of_an_earlier_one_is_another_hub(tmp_path):
    port = 0
    for name in ("earlier", "later"):
        with connected_hub(tmp_path / name, port) as hub:
            HfApi().create_repo("user/tiny")
            port = hub.server.server_port


def test_transformers_asks_the_hub_of_now_and_not_its_first(tmp_path):
    for name in ("earlier", "later"):
        with connected_hub(tmp_path / name) as hub:
            assert hf_api().endpoint == hub.url
