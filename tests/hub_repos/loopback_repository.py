"""A repository of the loopback Hub, in memory: commits, branches, tags and pull requests."""

import hashlib
from dataclasses import dataclass, field

NOW = "2025-01-01T00:00:00.000Z"
LFS_SUFFIXES = (".safetensors", ".png", ".jpg", ".onnx", ".wasm")


@dataclass
class Blob:
    """A file at a commit; `oid` is git's, of the pointer where the content is an LFS object."""

    content: bytes
    lfs: bool = False

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        stored = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    def entry(self, path):
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)} | (
            {"lfs": lfs} if self.lfs else {}
        )


@dataclass
class Repository:
    """Commits as {hash: {path: Blob}}, and what names them."""

    private: bool = False
    sdk: str | None = None  # of a Space
    hardware: str | None = None
    commits: dict = field(default_factory=dict)
    parents: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    pulls: dict = field(default_factory=dict)
    pull_status: dict = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")})

    @property
    def main(self):
        """The files at main's head, as {path: bytes}."""
        return self.at("main")

    def at(self, revision):
        return {path: blob.content for path, blob in self.commits[self.resolve(revision)].items()}

    def history(self, revision="main"):
        """Commit hashes, newest first."""
        commit, hashes = self.resolve(revision), []
        while commit:
            hashes.append(commit)
            commit = self.parents[commit]
        return hashes

    def resolve(self, revision):
        pulls = {f"refs/pr/{number}": commit for number, commit in self.pulls.items()}
        return (self.branches | self.tags | pulls | {commit: commit for commit in self.commits}).get(revision)

    def merge(self, number):
        """Merge a pull request: a commit on main with the files that it adds or changes."""
        offered, head = self.commits[self.pulls[number]], self.branches["main"]
        before = self.commits[self.parents[self.pulls[number]]]
        files = {path: blob for path, blob in offered.items() if before.get(path) != blob}
        self.pull_status[number] = "merged"
        return self.commit("main", self.commits[head] | files, head)

    def commit(self, branch, files, parent=None):
        """A commit with these files, at the head of a branch if one is named; its hash."""
        description = f"{parent} {len(self.commits)} {[(path, blob.oid) for path, blob in sorted(files.items())]}"
        commit = hashlib.sha1(description.encode()).hexdigest()
        self.commits[commit], self.parents[commit] = files, parent
        if branch:
            self.branches[branch] = commit
        return commit
