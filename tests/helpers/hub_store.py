# Copyright 2026 The hf_gradaug team. Licensed under the Apache License, Version 2.0.
"""What a Hub of the tests holds: repositories, their branches and commits, and the bytes of their files. No HTTP."""

import hashlib
import json
from dataclasses import dataclass, field
from fnmatch import fnmatch

from helpers.hub_cards import CardError, check_model_card, parse_card


LARGE_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.parquet", "*.png", "*.arrow", "*.tfevents.*")


class HubError(Exception):
    """An answer that is no success: `code` is the Hub's name for the error, if it has one."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit. Large ones are kept by their SHA-256, and git holds a pointer to them."""

    content: bytes
    is_large: bool = False

    @property
    def pointer(self) -> bytes:
        return f"oid sha256:{sha256(self.content)}\nsize {len(self.content)}\n".encode()

    @property
    def git_oid(self) -> str:
        return git_hash(self.pointer if self.is_large else self.content)

    @property
    def etag(self) -> str:
        """What the client compares its own file with."""
        return sha256(self.content) if self.is_large else self.git_oid


@dataclass(frozen=True)
class Commit:
    files: dict[str, File]
    title: str
    parent: str | None

    @property
    def sha(self) -> str:
        files = sorted((path, file.etag) for path, file in self.files.items())
        return hashlib.sha1(json.dumps([files, self.title, self.parent]).encode()).hexdigest()


@dataclass
class Repository:
    kind: str  # "model" or "dataset"
    name: str
    is_private: bool = False
    branches: dict[str, str] = field(default_factory=dict)  # the last commit of each
    commits: dict[str, Commit] = field(default_factory=dict)

    def find(self, revision: str) -> Commit:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def file(self, revision: str, path: str) -> File:
        commit = self.find(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        return commit.files[path]

    def commit(self, branch: str, files: dict[str, File], title: str) -> Commit:
        commit = Commit(files, title, parent=self.branches.get(branch))
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits, the oldest first."""
        commits = [self.find(revision)]
        while commits[0].parent is not None:
            commits.insert(0, self.commits[commits[0].parent])
        return commits

    def card(self, revision: str) -> dict:
        """The metadata at the head of the card."""
        readme = self.find(revision).files.get("README.md")
        return {} if readme is None else parse_card(readme.content.decode())


class Store:
    """All repositories, and the large files that were uploaded, whether a commit has them or not."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}

    def create(self, kind: str, name: str, is_private: bool) -> Repository:
        if (kind, name) in self.repositories:
            raise HubError(409, f"You already created this {kind} repo: {name}")
        self.repositories[kind, name] = repository = Repository(kind, name, is_private)
        repository.commit("main", {".gitattributes": File(b"* text=auto\n")}, "initial commit")
        return repository

    def apply(self, repository: Repository, branch: str, lines: list[dict], decode) -> Commit:
        """A commit from the lines that the client sends: a header, then one operation each."""
        head = repository.find(branch)
        files, title = dict(head.files), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, head.sha):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                files[value["path"]] = File(decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.large:
                    raise HubError(400, f"{value['path']} points to a file that was not uploaded")
                files[value["path"]] = File(self.large[value["oid"]], is_large=True)
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
            else:
                raise HubError(400, f"Unknown operation: {line['key']}")
        if repository.kind == "model" and "README.md" in files:
            try:
                check_model_card(files["README.md"].content.decode())
            except CardError as error:
                raise HubError(400, str(error)) from error
        return repository.commit(branch, files, title)


def is_large(path: str) -> bool:
    return any(fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in LARGE_FILES)


def list_tree(commit: Commit, folder: str, is_recursive: bool) -> list[dict]:
    """Files and folders below a folder, as the Hub describes them."""
    start = f"{folder}/" if folder else ""
    entries = {}
    for path, file in sorted(commit.files.items()):
        if path.startswith(start):
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts)):
                if depth == 1 or is_recursive:
                    parent = start + "/".join(parts[:depth])
                    entries[parent] = describe_folder(parent)
            if len(parts) == 1 or is_recursive:
                entries[path] = describe(path, file)
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist", "EntryNotFound")
    return list(entries.values())


def describe_folder(path: str) -> dict:
    return {"type": "directory", "oid": git_hash(path.encode()), "size": 0, "path": path}


def describe(path: str, file: File) -> dict:
    entry = {"type": "file", "oid": file.git_oid, "size": len(file.content), "path": path}
    if file.is_large:
        entry["lfs"] = {"oid": file.etag, "size": len(file.content), "pointerSize": len(file.pointer)}
    return entry
