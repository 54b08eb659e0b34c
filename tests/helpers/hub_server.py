# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""
A Hub of the tests' own, on the loopback interface: real HTTP, for the unmodified client, with faults on demand.

    hub = HubServer()  # listens at once
    os.environ["HF_ENDPOINT"] = hub.url

It has one user, whose tokens are `WRITER` and `READER`. Large files go the LFS way, by `HF_HUB_DISABLE_XET=1`.
"""

import base64
import json
import re
from urllib.parse import parse_qs

from helpers.hub_cards import CardError, check_model_card
from helpers.hub_http import RequestHandler, WebServer, route
from helpers.hub_store import HubError, Repository, Store, describe, describe_folder, is_large, list_tree, sha256


USER, WRITER, READER = "someone", "hf_writerOfTheTests", "hf_readerOfTheTests"
DATE = "2026-01-01T00:00:00.000Z"


class HubServer(WebServer):
    """The Hub. `store` holds what was pushed."""

    def __init__(self):
        self.store = Store()
        super().__init__(_Handler)

    def clear(self) -> None:
        super().clear()
        self.store = Store()

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.store.repositories[kind, name]

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """The files of a repository, without the one that each has from the start."""
        files = self.repository(name, kind).find(revision).files
        return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def titles(self, name: str, revision: str = "main") -> list[str]:
        """The messages of all commits but the first."""
        return [commit.title for commit in self.repository(name).history(revision)[1:]]

    def uploads(self) -> list[int]:
        """The sizes of the large files that came in whole."""
        return [request.size for request in self.requests if request.method == "PUT" and request.status == 200]


class _Handler(RequestHandler):
    web: HubServer

    @property
    def role(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (WRITER, READER):
            raise HubError(401, "Invalid credentials in Authorization header")
        return {WRITER: "write", READER: "read"}.get(token)

    def _find(self, kind: str, name: str, write: bool = False) -> Repository:
        role = self.role  # a wrong token is an error for public repositories too
        repository = self.web.store.repositories.get((kind, name))
        if repository is None or (repository.is_private and role is None):
            raise HubError(401 if role is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self._check_write()
        return repository

    def _check_write(self) -> None:
        if self.role is None:
            raise HubError(401, "Invalid username or password.")
        if self.role != "write":
            raise HubError(403, "You don't have the rights to write with this token")

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        if self.role is None:
            raise HubError(401, "Invalid username or password.")
        self._send(200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": self.role}}})

    @route("POST", "/api/repos/create")
    def create(self):
        self._check_write()
        wanted = self._json()
        kind, name = wanted.get("type") or "model", f"{wanted.get('organization') or USER}/{wanted['name']}"
        answer = {"url": f"{self.web.url}/{'datasets/' if kind == 'dataset' else ''}{name}", "name": name}
        try:
            self.web.store.create(kind, name, wanted.get("visibility") == "private" or wanted.get("private") is True)
        except HubError as error:  # the client reads the address of a repository that is there already, too
            return self._send(error.status, {**answer, "error": error.message})
        self._send(200, answer)

    @route("GET", "/api/{kind}/{name}/auth-check")
    def check_read(self, kind, name):
        self._find(kind, name)
        self._send(200, {})

    @route("GET", "/api/{kind}/{name}/auth-check/write")
    def check_write(self, kind, name):
        self._find(kind, name, write=True)
        self._send(200, {})

    @route("POST", "/api/{kind}/{name}/branch/{revision}")
    def create_branch(self, kind, name, revision):
        repository = self._find(kind, name, write=True)
        if revision in repository.branches:
            raise HubError(409, f"Reference already exists: {revision}")
        repository.branches[revision] = repository.find(self._json().get("startingPoint") or "main").sha
        self._send(200, {})

    @route("POST", "/api/validate-yaml")
    def validate_card(self):
        try:
            check_model_card(self._json()["content"])
        except CardError as error:
            return self._send(400, {"errors": [{"message": str(error)}], "warnings": []})
        self._send(200, {"errors": [], "warnings": []})

    @route("POST", "/api/{kind}/{name}/preupload/{revision}")
    def preupload(self, kind, name, revision):
        files = self._find(kind, name, write=True).find(revision).files
        answers = []
        for wanted in self._json()["files"]:
            path = wanted["path"]
            mode = "lfs" if is_large(path) else "regular"
            oid = files[path].etag if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": answers})

    @route("POST", "/{prefix}{name}.git/info/lfs/objects/batch")
    def prepare_uploads(self, prefix, name):
        self._find("dataset" if prefix else "model", name, write=True)
        objects = []
        for wanted in self._json()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.web.store.large:  # no action: it is there already
                url = f"{self.web.url}/uploads/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    @route("PUT", "/uploads/{oid}")
    def upload(self, oid):
        if sha256(self.body) != oid:
            raise HubError(400, "The content does not match its hash")
        self.web.store.large[oid] = self.body
        self._send(200, {})

    @route("POST", "/uploads/{oid}/verify")
    def verify(self, oid):
        if len(self.web.store.large.get(oid, b"")) != self._json()["size"]:
            raise HubError(404, "Not uploaded")
        self._send(200, {})

    @route("POST", "/api/{kind}/{name}/commit/{revision}")
    def commit(self, kind, name, revision):
        lines = [json.loads(line) for line in self.body.splitlines()]
        repository = self._find(kind, name, write=True)
        sha = self.web.store.apply(repository, revision, lines, base64.b64decode).sha
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.web.url}/{name}/commit/{sha}"})

    @route("GET", "/api/{kind}/{name}/revision/{revision}")
    def info(self, kind, name, revision="main"):
        repository = self._find(kind, name)
        commit, card = repository.find(revision), repository.card(revision)
        tags = [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])]
        answer = {"id": name, "sha": commit.sha, "private": repository.is_private, "gated": False, "tags": tags}
        answer.update(pipeline_tag=card.get("pipeline_tag"), library_name=card.get("library_name"), cardData=card)
        answer.update(siblings=[{"rfilename": path} for path in sorted(commit.files)], lastModified=DATE)
        self._send(200, answer)

    route("GET", "/api/{kind}/{name}")(info)

    @route("GET", "/api/{kind}/{name}/tree/{revision}(?:/{path})?")
    def tree(self, kind, name, revision, path):
        commit = self._find(kind, name).find(revision)
        self._send(200, list_tree(commit, path, self.query.get("recursive", "").lower() in ("true", "1")))

    @route("POST", "/api/{kind}/{name}/paths-info/{revision}")
    def paths_info(self, kind, name, revision):
        files, entries = self._find(kind, name).find(revision).files, []
        for path in parse_qs(self.body.decode())["paths"]:
            if path in files:
                entries.append(describe(path, files[path]))
            elif any(other.startswith(f"{path}/") for other in files):
                entries.append(describe_folder(path))
        self._send(200, entries)

    @route("GET HEAD", "/{prefix}{name}/resolve/{revision}/{path}")
    def resolve(self, prefix, name, revision, path):
        repository = self._find("dataset" if prefix else "model", name)
        # With the commit on an error too, the client remembers that there is no such file.
        headers = {"X-Repo-Commit": repository.find(revision).sha, "Accept-Ranges": "bytes"}
        try:
            file = repository.file(revision, path)
        except HubError as error:
            headers.update({"X-Error-Message": error.message, "X-Error-Code": error.code})
            return self._send(error.status, {"error": error.message}, headers)
        headers.update({"ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"})
        content, status = file.content, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is not None:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, headers)
