"""A Hugging Face Hub on 127.0.0.1 that the real `huggingface_hub` client cannot tell from the real one.

It keeps repositories in memory: commits, branches, tags and files, small ones inside a commit and large or binary ones
in a store of their own (Git LFS), which are fetched by way of a redirect to another origin. Statuses, header names and
messages are those of huggingface.co.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import close_session, constants
from huggingface_hub.utils import disable_progress_bars

LARGE_SUFFIXES = (".safetensors", ".parquet", ".gguf", ".onnx", ".png", ".bin")
LARGE_BYTES = 10_000_000
LICENSES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cdla-sharing-1.0", "unknown", "other")
TAG_PATTERN = re.compile(r"[\w./-]+")
INITIAL = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Repository:
    """Commits (path -> content, or the sha256 of a large file), and the names that point to them."""

    private: bool
    commits: dict[str, dict[str, bytes | str]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes | str], branch: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return sha if sha in self.commits else None


class Refusal(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: object):
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class LoopbackHub:
    """The state of the Hub and the switches of a test.

    Attributes:
        tokens: token -> (user, `read` or `write`).
        repositories: (`model` or `dataset`, `user/name`) -> repository.
        objects: sha256 -> content of large files.
        bytes_received: content that clients have sent, in commits and as large files.
        cut_uploads_after: bytes of a large file after which its connection breaks off; None lets it through.
        large_files: whether files go to the store at all; False takes everything inside commits.
        open: cleared, commits and uploads are not answered until it is set again.
    """

    def __init__(self, port: int = 0):
        self.tokens = {"hf_writer": ("user", "write"), "hf_reader": ("user", "read")}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.bytes_received = 0
        self.cut_uploads_after: int | None = None
        self.large_files = True
        self.open = threading.Event()
        self.open.set()
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def storage_url(self) -> str:
        """Another origin to every client, which therefore keeps its token to itself."""
        return f"http://localhost:{self.server.server_port}/storage"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """What a revision holds, for tests."""
        repository = self.repositories[kind, repo]
        commit = repository.commits[repository.resolve(revision)]
        return {path: self.content(value) for path, value in commit.items() if path not in INITIAL}

    def content(self, value: bytes | str) -> bytes:
        return value if isinstance(value, bytes) else self.objects[value]

    def describe_file(self, path: str, value: bytes | str) -> dict:
        content = self.content(value)
        described = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if isinstance(value, str):
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value}\nsize {len(content)}\n".encode()
            described["lfs"] = {"oid": value, "size": len(content), "pointerSize": len(pointer)}
            described["oid"] = git_hash(pointer)
        return described


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def metadata(card: str) -> dict:
    block = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(block[1]) or {} if block else {}


class Handler(BaseHTTPRequestHandler):
    """One request: found in `ROUTES`, answered by the method of that name."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def answer(self) -> None:
        self.query = parse_qs(urlsplit(self.path).query)
        path = urlsplit(self.path).path
        self.sent: bytes | None = None
        try:
            for method, pattern, name in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    if self.command != "PUT":
                        self.sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    return getattr(self, name)(**{key: unquote(value) for key, value in match.groupdict("").items()})
            raise Refusal(404, f"no route {self.command} {path}")
        except Refusal as refusal:
            closing = {"Connection": "close"} if self.sent is None else {}
            self.reply(refusal.body, refusal.status, refusal.headers | closing)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def reply(self, body: object = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # --- who may do what ---------------------------------------------------------------------------------------------

    def user(self) -> tuple[str | None, str]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token, (None, ""))

    def repository(self, kind: str, repo: str, write: bool = False) -> Repository:
        name, permission = self.user()
        repository = self.hub.repositories.get((kind or "model", repo))
        hidden = repository is not None and repository.private and name != repo.split("/")[0]
        if repository is None or hidden:
            status, message = (404, "Repository not found") if name else (401, "Invalid username or password.")
            raise Refusal(status, message, "RepoNotFound")
        if write and name is None:
            raise Refusal(401, "Invalid username or password.")
        if write and (permission != "write" or name != repo.split("/")[0]):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    def revision(self, repository: Repository, revision: str) -> str:
        sha = repository.resolve(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def whoami(self) -> None:
        name, permission = self.user()
        if name is None:
            raise Refusal(401, "Invalid username or password.")
        self.reply({"type": "user", "name": name, "orgs": [], "auth": {"accessToken": {"role": permission}}})

    # --- writing -----------------------------------------------------------------------------------------------------

    def create_repo(self) -> None:
        wanted = json.loads(self.sent)
        kind, (name, permission) = wanted.get("type") or "model", self.user()
        owner = wanted.get("organization") or name
        repo = f"{owner}/{wanted['name']}"
        if name is None:
            raise Refusal(401, "Invalid username or password.")
        if (kind, repo) in self.hub.repositories and name == owner:
            raise Refusal(409, f"You already created this {kind} repo", url=f"{self.hub.url}/{repo}")
        if kind == "space" and "sdk" not in wanted:
            raise Refusal(400, '"sdk" is required')
        if permission != "write" or name != owner:
            raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        repository = self.hub.repositories[kind, repo] = Repository(wanted.get("visibility") == "private")
        repository.commit(dict(INITIAL), "main")
        self.reply({"url": f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{repo}"})

    def validate_yaml(self) -> None:
        card = metadata(json.loads(self.sent)["content"])
        errors = []
        if "license" in card and card["license"] not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
        if card.get("license") == "other" and not card.get("license_name"):
            errors.append('"license_name" is required when "license" is "other"')
        for name in ("datasets", "base_model", "tags", "metrics", "language"):
            values = card.get(name, [])
            for value in values if isinstance(values, list) else [values]:
                if not isinstance(value, str) or (
                    name == "datasets" and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value)
                ):
                    errors.append(f'"{name}" with value "{value}" is not valid')
        for model in card.get("model-index", []):
            for result in model["results"]:
                complete = result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
                if not complete or any(metric.get("value") is None for metric in result["metrics"]):
                    errors.append(f'"model-index[0].results" of {model["name"]} is not complete')
        warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
        body = {"errors": [{"message": message} for message in errors], "warnings": warnings}
        self.reply(body, 400 if errors else 200)

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        repository = self.repository(kind, repo, write=True)
        present = repository.commits[self.revision(repository, revision)]
        files = []
        for file in json.loads(self.sent)["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            large = path.endswith(LARGE_SUFFIXES) or file["size"] > LARGE_BYTES or b"\0" in sample
            value = present.get(path)
            oid = value if isinstance(value, str) else None if value is None else git_hash(value)
            mode = "lfs" if large and self.hub.large_files else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": files})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        repository = self.repository(kind, repo, write=True)
        self.hub.open.wait(60)
        with self.hub.lock:
            if revision not in repository.branches:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            files = dict(repository.commits[repository.branches[revision]])
            self.hub.bytes_received += len(self.sent)
            for key, value in ((line["key"], line["value"]) for line in map(json.loads, self.sent.splitlines())):
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile" and value["oid"] not in self.hub.objects:
                    raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                elif key == "lfsFile":
                    files[value["path"]] = value["oid"]
                elif key == "deletedFile":
                    del files[value["path"]]
            sha = repository.commit(files, revision)
        self.reply({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def lfs_batch(self, kind: str, repo: str) -> None:
        self.repository(kind, repo, write=True)
        objects = json.loads(self.sent)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.storage_url}/{item['oid']}"}
                item["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/api/lfs-verify"}}
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        length, content = int(self.headers["Content-Length"]), b""
        end = length if self.hub.cut_uploads_after is None else min(length, self.hub.cut_uploads_after)
        while len(content) < end:
            piece = self.rfile.read(min(1 << 16, end - len(content)))
            if not piece:
                break
            content += piece
        self.hub.open.wait(60)
        with self.hub.lock:
            self.hub.bytes_received += len(content)
        if len(content) < length:
            self.close_connection = True
            self.connection.close()
            return
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content does not have this sha256")
        self.hub.objects[oid] = content
        self.reply()

    def lfs_verify(self) -> None:
        wanted = json.loads(self.sent)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, "Object not found")
        self.reply({})

    def tag(self, kind: str, repo: str, revision: str) -> None:
        repository = self.repository(kind, repo, write=True)
        if self.command == "DELETE":
            if repository.tags.pop(revision, None) is None:
                raise Refusal(404, f"Tag {revision} not found", "RevisionNotFound")
            return self.reply({})
        name = json.loads(self.sent)["tag"]
        if name in repository.tags or not TAG_PATTERN.fullmatch(name):
            raise Refusal(409, f"Tag reference exists already: {name}")
        repository.tags[name] = self.revision(repository, revision)
        self.reply({})

    def branch(self, kind: str, repo: str, revision: str) -> None:
        repository = self.repository(kind, repo, write=True)
        if self.command == "DELETE":
            if revision == "main" or repository.branches.pop(revision, None) is None:
                raise Refusal(403, f"Branch {revision} cannot be deleted")
            return self.reply({})
        if revision in repository.branches:
            raise Refusal(409, f"Reference already exists: {revision}")
        start = json.loads(self.sent or b"{}").get("startingPoint", "main")
        repository.branches[revision] = self.revision(repository, start)
        self.reply({})

    # --- reading -----------------------------------------------------------------------------------------------------

    def info(self, kind: str, repo: str, revision: str) -> None:
        repository = self.repository(kind, repo)
        sha = self.revision(repository, revision or "main")
        files = repository.commits[sha]
        siblings = [{"rfilename": path} for path in sorted(files)]
        card = metadata(self.hub.content(files.get("README.md", b"")).decode())
        about = {"id": repo, "sha": sha, "private": repository.private, "siblings": siblings, "cardData": card}
        self.reply(about | {"tags": card.get("tags", []), "pipeline_tag": card.get("pipeline_tag")})

    def tree(self, kind: str, repo: str, revision: str, folder: str) -> None:
        repository = self.repository(kind, repo)
        files = repository.commits[self.revision(repository, revision)]
        inside = {path: value for path, value in files.items() if not folder or path.startswith(folder + "/")}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        parents = {path[: cut.start()] for path in inside for cut in re.finditer("/", path)}
        entries = [self.hub.describe_file(path, value) for path, value in sorted(inside.items())]
        entries += [{"type": "directory", "path": path, "oid": git_hash(path.encode())} for path in sorted(parents)]
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            depth = folder.count("/") + 1 if folder else 0
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
        self.reply([entry for entry in entries if entry["path"] != folder])

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        repository = self.repository(kind, repo)
        files = repository.commits[self.revision(repository, revision)]
        asked = parse_qs(self.sent.decode()).get("paths", [])
        found = [self.hub.describe_file(path, files[path]) for path in asked if path in files]
        folders = [path for path in asked if any(file.startswith(path + "/") for file in files)]
        self.reply(found + [{"type": "directory", "path": path, "oid": git_hash(path.encode())} for path in folders])

    def refs(self, kind: str, repo: str) -> None:
        repository = self.repository(kind, repo)

        def described(names: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]

        branches, tags = described(repository.branches, "heads"), described(repository.tags, "tags")
        self.reply({"branches": branches, "tags": tags, "converts": []})

    def resolve(self, kind: str, repo: str, revision: str, file: str) -> None:
        repository = self.repository(kind, repo)
        sha = self.revision(repository, revision)
        value = repository.commits[sha].get(file)
        if value is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{value if isinstance(value, str) else git_hash(value)}"'}
        if isinstance(value, bytes):
            return self.reply(value, 200, headers)
        size = len(self.hub.content(value))
        linked = {"X-Linked-Size": size, "X-Linked-Etag": f'"{value}"', "Location": f"{self.hub.storage_url}/{value}"}
        self.reply(b"", 302, headers | linked)

    def storage(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "a token was sent to another origin")
        content = self.hub.objects[oid]
        begin = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
        self.reply(content[begin:], 206 if begin else 200, headers)

    def home(self) -> None:
        self.reply({})


API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
GIT = r"/((?P<kind>dataset|space)s/)?(?P<repo>[^/]+/[^/]+)"
REVISION = r"/(?P<revision>[^/]+)"
ROUTES: tuple[tuple[str, str, Callable | str], ...] = (
    ("GET|HEAD", "/", "home"),
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create_repo"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", "/api/lfs-verify", "lfs_verify"),
    ("PUT", "/storage/(?P<oid>[0-9a-f]+)", "lfs_upload"),
    ("GET", "/storage/(?P<oid>[0-9a-f]+)", "storage"),
    ("POST", API + "/preupload" + REVISION, "preupload"),
    ("POST", API + "/commit" + REVISION, "commit"),
    ("POST|DELETE", API + "/tag" + REVISION, "tag"),
    ("POST|DELETE", API + "/branch" + REVISION, "branch"),
    ("POST", API + "/paths-info" + REVISION, "paths_info"),
    ("GET", API + "/refs", "refs"),
    ("GET", API + "/tree" + REVISION + "(/(?P<folder>.+))?", "tree"),
    ("GET", API + "(/revision" + REVISION + ")?", "info"),
    ("POST", GIT + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("GET|HEAD", GIT + "/resolve" + REVISION + "/(?P<file>.+)", "resolve"),
)


@contextmanager
def connected_hub(home: Path, port: int = 0) -> Iterator[LoopbackHub]:
    """A Hub that this process, and every process it starts, takes for the real one; `user` may write.

    The client keeps its connections open and finds them again by address: without a new session, a Hub on the port of
    an earlier one would be asked through a connection to that one, whose threads still answer.
    """
    hub = LoopbackHub(port)
    environment = {
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": "hf_writer", "HF_HUB_OFFLINE": "0"},
        **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    }
    already_read = {
        **{"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True},
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    }
    disable_progress_bars()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name, value in already_read.items():
            patch.setattr(constants, name, value)
        patch.setattr("transformers.utils.hub._hf_api", None)  # the shared client keeps the address of its first Hub
        close_session()
        yield hub
        close_session()
    hub.close()
