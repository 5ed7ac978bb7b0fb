"""A small Hugging Face hub on this machine: what `huggingface_hub` asks to make a repository and to commit to it."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_a_token"
USER = "ada"


@dataclass
class Repository:
    """Files by branch, and the messages of commits."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    commits: list[str] = field(default_factory=list)

    def sha(self, branch: str) -> str:
        content = repr(sorted(self.branches[branch].items()))
        return hashlib.sha1(f"{branch}{content}{len(self.commits)}".encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves on a free port of this machine until `shutdown`. Names of repositories begin with `USER`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        """Method and path of each."""
        self.objects: dict[str, bytes] = {}
        self.broken: str | None = None
        """A part of a path at which the hub answers with an error of its own."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Refusal(Exception):
    def __init__(self, status: int, reason: str, code: str | None = None, **content: str) -> None:
        self.status, self.reason, self.code, self.content = status, reason, code, content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # type: ignore[assignment]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self._body()
        headers: dict[str, str] = {}
        try:
            if self.server.broken and self.server.broken in path:
                raise _Refusal(403, "the quota is used up")
            if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _Refusal(401, "Invalid credentials in Authorization header")
            status, content, headers = 200, *self._respond(path.strip("/").split("/"), body)
        except _Refusal as error:
            status, content = error.status, json.dumps({"error": error.reason} | error.content).encode()
            headers = {"X-Error-Message": error.reason} | ({"X-Error-Code": error.code} if error.code else {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _respond(self, path: list[str], body: bytes) -> tuple[bytes, dict[str, str]]:
        match path:
            case ["api", "whoami-v2"]:
                return _json({"type": "user", "name": USER})
            case ["api", "repos", "create"]:
                return _json(self._create(json.loads(body)))
            case ["api", "validate-yaml"]:
                return _json(_checked(json.loads(body)["content"]))
            case ["api", "models", owner, name, "branch", branch]:
                branches = self._repository(owner, name).branches
                if branch in branches:
                    raise _Refusal(409, "the branch exists")
                branches[branch] = dict(branches["main"])
                return _json({})
            case ["api", "models", owner, name, *rest] if not rest or rest[0] == "revision":
                return _json(self._info(owner, name, rest[1] if rest else "main"))
            case ["api", "models", _, _, "preupload", _]:
                return _json({"files": [_mode(file["path"]) for file in json.loads(body)["files"]]})
            case ["api", "models", owner, name, "commit", branch]:
                sha = self._commit(self._repository(owner, name), branch, body)
                url = f"{self.server.url}/{owner}/{name}/commit/{sha}"
                return _json({"success": True, "commitOid": sha, "commitUrl": url})
            case [_, _, "info", "lfs", "objects", "batch"]:
                return _json(
                    {"transfer": "basic", "objects": [self._place(each) for each in json.loads(body)["objects"]]}
                )
            case ["lfs", digest]:
                if hashlib.sha256(body).hexdigest() != digest:
                    raise _Refusal(400, "other content than was announced")
                self.server.objects[digest] = body
                return _json({})
            case [owner, name, "resolve", branch, *parts]:
                repository = self._repository(owner, name)
                if (file := "/".join(parts)) not in repository.branches[branch]:
                    raise _Refusal(404, "Entry not found", "EntryNotFound")
                content = repository.branches[branch][file]
                etag = hashlib.sha1(content).hexdigest()
                return content, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.sha(branch)}
        raise _Refusal(404, f"no such place: {'/'.join(path)}")

    def _repository(self, owner: str, name: str) -> Repository:
        if f"{owner}/{name}" not in self.server.repositories:
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        return self.server.repositories[f"{owner}/{name}"]

    def _create(self, wanted: dict) -> dict:
        full = f"{wanted['organization']}/{wanted['name']}"
        url = f"{self.server.url}/{full}"
        if full in self.server.repositories:
            raise _Refusal(409, "You already created this model repo", url=url)
        if wanted["organization"] != USER:
            raise _Refusal(403, f"You don't have the rights to create a model under the namespace {full.split('/')[0]}")
        private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.server.repositories[full] = Repository(private)
        return {"url": url, "name": full}

    def _info(self, owner: str, name: str, branch: str) -> dict:
        repository = self._repository(owner, name)
        files = [{"rfilename": file} for file in sorted(repository.branches[branch])]
        place = {"id": f"{owner}/{name}", "sha": repository.sha(branch)}
        return place | {"private": repository.private, "tags": [], "siblings": files, "downloads": 0, "likes": 0}

    def _place(self, wanted: dict) -> dict:
        href = f"{self.server.url}/lfs/{wanted['oid']}"
        return {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": {"href": href}}}

    def _commit(self, repository: Repository, branch: str, body: bytes) -> str:
        files = dict(repository.branches[branch])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    if value.get("parentCommit") not in (None, repository.sha(branch)):
                        raise _Refusal(412, "A commit has happened since")
                    summary = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        repository.branches[branch] = files
        repository.commits.append(summary)
        return repository.sha(branch)


def _json(content: dict) -> tuple[bytes, dict[str, str]]:
    return json.dumps(content).encode(), {"Content-Type": "application/json"}


def _mode(path: str) -> dict:
    """Large files go another way than small ones, as on the hub."""
    return {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}


def _checked(card: str) -> dict:
    if not isinstance(yaml.safe_load(card.split("---\n")[1]), dict):
        raise _Refusal(400, "the metadata is no mapping")
    return {"errors": [], "warnings": []}
