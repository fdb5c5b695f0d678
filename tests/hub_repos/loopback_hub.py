"""A Hub on 127.0.0.1 for huggingface_hub's own client: repositories, branches, tags, pull requests, LFS, collections.

The Space `owner/name` is the repository `spaces/owner/name`, a data set `datasets/owner/name`. What a client sent is
in `requests`, what is stored in `repositories` and `objects`; all in memory. LFS objects are served from another host
name, as on the Hub, where a token must not go. `fail`, `drop`, `slow` and `when` make the next requests that fit go
wrong.
"""

import base64
import contextlib
import hashlib
import json
import re
import select
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_repos.loopback_repository import LFS_SUFFIXES, NOW, Blob, Repository


class RefusedError(Exception):
    """An answer that is an error: status and X-Error-Code."""

    def __init__(self, status, message, code=None, body=None):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message} | (body or {})


class LoopbackHub:
    """`tokens` may write in the name of `user`; `readers` may read the user's private repositories.

    A user who `pays` may have Gradio Spaces. `trusted` are CI jobs: {(ID token, resource): token}.
    """

    def __init__(self, tokens=(), readers=(), user="someone"):
        self.tokens, self.readers, self.user, self.pays = set(tokens), set(readers), user, True
        self.trusted = {}
        self.repositories, self.objects, self.collections = {}, {}, {}
        self.requests, self.rules, self.lock = [], [], threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def when(self, method, path_regex, action, times=1):
        """Call `action(handler)` at the next requests that fit; if it returns true it has answered them."""
        self.rules.append([method, path_regex, action, times])

    def fail(self, method, path_regex, status, times=1, headers=None):
        """Answer with an error, with further headers."""
        self.when(method, path_regex, lambda handler: handler.answer({"error": "injected"}, status, headers), times)

    def drop(self, path_regex, after_bytes=0, times=1):
        """Close the connection in the middle of an upload."""
        self.when("PUT", path_regex, lambda handler: handler.hang_up(after_bytes), times)

    def slow(self, method, path_regex, seconds, times=1):
        """Carry out the request at once, and answer late."""
        self.when(method, path_regex, lambda handler: setattr(handler, "delay", seconds), times)

    def hold(self, method, path_regex):
        """Carry out the request at once, and answer only when the client has given up."""
        self.when(method, path_regex, lambda handler: setattr(handler, "waits_for_close", True), 1)

    def rule_for(self, method, path):
        with self.lock:
            for rule in self.rules:
                if rule[3] and re.fullmatch(rule[0], method) and re.search(rule[1], path):
                    rule[3] -= 1
                    return rule[2]
        return None

    def count(self, method, path_regex):
        """How many requests there were."""
        return sum(bool(re.fullmatch(method, verb) and re.search(path_regex, path)) for verb, path, _ in self.requests)


class Handler(BaseHTTPRequestHandler):
    """One connection. ROUTES at the end of this file says which method answers what."""

    protocol_version = "HTTP/1.1"
    hub = None

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.respond
        raise AttributeError(name)

    def log_message(self, *arguments):
        """Nothing on the screen: `hub.requests` is the log."""

    def respond(self):
        self.delay, self.waits_for_close, self.pending_answer = 0, False, None
        self.handle_request()
        time.sleep(self.delay)  # here, because the lock is free now
        if self.waits_for_close:
            select.select([self.connection], [], [], 60)  # readable when the client closes it
        if self.pending_answer:
            with contextlib.suppress(ConnectionError):  # the client did not wait
                self.send(*self.pending_answer)

    def handle_request(self):
        self.body = None
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), unquote(url.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.requests.append((self.command, path, bool(token)))
        self.may_write, self.may_read = token in self.hub.tokens, token in self.hub.tokens | self.hub.readers
        rule = self.hub.rule_for(self.command, path)
        if rule and rule(self):
            return None
        try:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if token and not self.may_read:
                raise RefusedError(401, "Invalid credentials in Authorization header")
            model_path = re.sub("^/api/(spaces|datasets)/", r"/api/models/\1/", path)
            for method, pattern, answer in ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, model_path)):
                    with self.hub.lock:
                        return answer(self, **match.groupdict())
            raise RefusedError(404, f"the loopback Hub has no {self.command} {path}")
        except RefusedError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error}
            return self.answer(error.body, error.status, headers)

    def answer(self, body=b"", status=200, headers=None):
        """Answer with JSON or bytes; true, as a rule's action has to return."""
        self.pending_answer = body if isinstance(body, bytes) else json.dumps(body).encode(), status, headers
        if self.body is None:  # a rule answered before the request was read
            self.close_connection = True
        return True

    def send(self, body, status, headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self, after_bytes):
        """Reset the connection."""
        self.rfile.read(after_bytes)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        return True

    def find(self, repo, revision=None):
        """The repository and the commit that a revision names."""
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and not self.may_read):
            raise RefusedError(404 if self.may_read else 401, "Repository not found", "RepoNotFound")
        commit = repository.resolve(revision or "main")
        if commit is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, commit

    def find_to_write(self, repo, revision=None):
        """As `find`, for a writer; for a pull request, for anyone who is logged in."""
        found = self.find(repo, revision)
        if "create_pr" not in self.query or not self.may_read:
            self.require_writer(repo.split("/")[-2])
        return found

    def require_login(self):
        if not self.may_read:
            raise RefusedError(401, "Invalid username or password.")

    def require_writer(self, namespace):
        self.require_login()
        if not self.may_write or namespace != self.hub.user:
            raise RefusedError(403, f"You don't have the rights to write in {namespace}")

    def create(self):
        request = json.loads(self.body)
        namespace = request["organization"] or self.hub.user
        is_space = request.get("type") == "space"
        folder = {"space": "spaces/", "dataset": "datasets/"}.get(request.get("type"), "")
        repo = f"{folder}{namespace}/{request['name']}"
        self.require_writer(namespace)
        if is_space and request["sdk"] not in ("gradio", "static"):
            raise RefusedError(400, "sdk: only gradio and static are known here")
        if is_space and request["sdk"] == "gradio" and not self.hub.pays:
            raise RefusedError(402, "Creating a Gradio Space requires a PRO subscription")
        if repo in self.hub.repositories:
            raise RefusedError(409, "You already created this model repo")
        made = Repository(request.get("visibility") == "private", request.get("sdk"), request.get("hardware"))
        self.hub.repositories[repo] = made
        self.answer({"url": f"{self.hub.url}/{repo}"})

    def exchange(self):
        request = json.loads(self.body)
        token = self.hub.trusted.get((request["subject_token"], request["resource"]))
        if token is None:
            raise RefusedError(400, "no publisher matches", body={"error": "invalid_grant"})
        self.answer({"access_token": token, "token_type": "bearer", "expires_in": 3600})

    def validate_yaml(self):
        self.answer({"errors": [], "warnings": []})

    def info(self, repo, revision=None):
        repository, commit = self.find(repo, revision)
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        shown = {"id": repo, "sha": commit, "private": repository.private, "gated": False, "siblings": siblings}
        self.answer(shown | ({"sdk": repository.sdk} if repository.sdk else {}))

    def refs(self, repo):
        repository, _ = self.find(repo)
        references = {
            "branches": ("refs/heads", repository.branches),
            "tags": ("refs/tags", repository.tags),
            "converts": ("", {}),
        }
        self.answer(
            {
                kind: [
                    {"name": name, "ref": f"{ref}/{name}", "targetCommit": commit} for name, commit in names.items()
                ]
                for kind, (ref, names) in references.items()
            }
        )

    def tree(self, repo, revision):
        repository, commit = self.find(repo, revision)
        self.answer([blob.entry(path) for path, blob in repository.commits[commit].items()])

    def preupload(self, repo, revision):
        repository, commit = self.find_to_write(repo, revision)
        ignored = repository.commits[commit].get(".gitignore", Blob(b"")).content.decode().split()
        oids = {path: blob.sha256 if blob.lfs else blob.oid for path, blob in repository.commits[commit].items()}
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
        files = [
            {"path": path, "uploadMode": modes[path], "shouldIgnore": path in ignored, "oid": oids.get(path)}
            for path in paths
        ]
        self.answer({"files": files})

    def lfs_batch(self, repo):
        self.require_login()
        objects = json.loads(self.body)["objects"]
        for lfs_object in objects:
            if lfs_object["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.storage}/lfs/{lfs_object['oid']}"}
                lfs_object["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/{repo}/lfs-verify"}}
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, oid):
        if self.headers.get("Authorization"):
            raise RefusedError(400, "a token came to the storage's host")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(422, "the object is not what its name says")
        self.hub.objects[oid] = self.body
        self.answer()

    def lfs_verify(self, repo):
        self.require_login()
        if json.loads(self.body)["oid"] not in self.hub.objects:
            raise RefusedError(404, "the object did not arrive")
        self.answer({})

    def commit(self, repo, revision):
        repository, head = self.find_to_write(repo, revision)
        is_pull_request = "create_pr" in self.query
        (_, header), *operations = [
            (line["key"], line["value"]) for line in map(json.loads, self.body.decode().splitlines())
        ]
        if header.get("parentCommit", head) != head:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[head])
        for key, value in operations:
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], lfs=True)
            else:
                del files[value["path"]]
        commit = repository.commit(None if is_pull_request else revision, files, head)
        if repo.startswith("spaces/") and b"\nsdk: " in files["README.md"].content:
            repository.sdk = files["README.md"].content.partition(b"\nsdk: ")[2].split()[0].decode()
        if is_pull_request:
            number = len(repository.pulls) + 1
            repository.pulls[number], repository.pull_status[number] = commit, "open"
        pull = f"{self.hub.url}/{repo}/discussions/{number}" if is_pull_request else None
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self.answer({"commitUrl": url, "commitOid": commit, "pullRequestUrl": pull, "success": True})

    def discussion_status(self, repo, number):
        self.require_login()
        repository, _ = self.find(repo)
        status = json.loads(self.body)["status"]
        repository.pull_status[int(number)] = status
        event = {"id": "1", "type": "status-change", "createdAt": NOW, "data": {"status": status}}
        self.answer({"newStatus": event})

    def create_branch(self, repo, name):
        repository, commit = self.find_to_write(repo, json.loads(self.body).get("startingPoint"))
        if name in repository.branches:
            raise RefusedError(409, "Reference already exists")
        repository.branches[name] = commit
        self.answer({})

    def delete_branch(self, repo, name):
        repository, _ = self.find_to_write(repo, name)
        del repository.branches[name]
        self.answer({})

    def create_tag(self, repo, revision):
        repository, commit = self.find_to_write(repo, revision)
        tag = json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise RefusedError(409, "Tag reference exists already")
        repository.tags[tag] = commit
        self.answer({})

    def file(self, repo, revision, path):
        """HEAD and GET; an LFS object is elsewhere, and its headers say what it will be."""
        repository, commit = self.find(repo, revision)
        blob = repository.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if blob is None:
            error_headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.answer({"error": "Entry not found"}, 404, headers | error_headers)
        elif blob.lfs:
            linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": len(blob.content)}
            location = {"Location": f"{self.hub.storage}/lfs/{blob.sha256}"}
            self.answer(b"", 302, headers | linked | location)
        else:
            self.answer(blob.content, 200, headers | {"ETag": f'"{blob.oid}"'})

    def create_collection(self):
        request = json.loads(self.body)
        self.require_writer(request["namespace"])
        slug = f"{request['namespace']}/{request['title'].lower()}-{'0' * 24}"
        if slug in self.hub.collections:
            raise RefusedError(409, "Collection already exists", body={"slug": slug})
        self.hub.collections[slug] = {
            "slug": slug, "title": request["title"], "private": request["private"], "items": [], "lastUpdated": NOW,
            "position": 0, "theme": "green", "upvotes": 0, "owner": request["namespace"],
        }  # fmt: skip
        self.collection(slug)

    def collection(self, slug):
        self.answer(self.hub.collections[slug])

    def add_collection_item(self, slug):
        request, items = json.loads(self.body), self.hub.collections[slug]["items"]
        self.require_writer(slug.split("/")[0])
        if request["item"]["id"] in [item["id"] for item in items]:
            raise RefusedError(409, "Item already in collection")
        number = len(items)
        items.append(
            {"_id": str(number), "position": number, **request["item"], "note": {"text": request.get("note")}}
        )
        self.collection(slug)

    def stored(self, oid):
        if self.headers.get("Authorization"):
            raise RefusedError(400, "a token came to the storage's host")
        self.answer(self.hub.objects[oid], 200, {"ETag": f'"{oid}"'})


REPO, REVISION = r"(?P<repo>(?:spaces/|datasets/)?[^/]+/[^/]+)", r"(?P<revision>refs/pr/\d+|[^/]+)"
SLUG = r"(?P<slug>[^/]+/[^/]+)"
API = rf"/api/models/{REPO}"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", "/oauth/token", Handler.exchange),
    ("GET", API, Handler.info),
    ("GET", rf"{API}/revision/{REVISION}", Handler.info),
    ("GET", rf"{API}/refs", Handler.refs),
    ("GET", rf"{API}/tree/{REVISION}", Handler.tree),
    ("POST", rf"{API}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", Handler.store),
    ("POST", rf"/{REPO}/lfs-verify", Handler.lfs_verify),
    ("POST", rf"{API}/commit/{REVISION}", Handler.commit),
    ("POST", rf"{API}/discussions/(?P<number>\d+)/status", Handler.discussion_status),
    ("POST", rf"{API}/branch/(?P<name>[^/]+)", Handler.create_branch),
    ("DELETE", rf"{API}/branch/(?P<name>[^/]+)", Handler.delete_branch),
    ("POST", rf"{API}/tag/{REVISION}", Handler.create_tag),
    ("POST", "/api/collections", Handler.create_collection),
    ("GET", rf"/api/collections/{SLUG}", Handler.collection),
    ("POST", rf"/api/collections/{SLUG}/items", Handler.add_collection_item),
    ("HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.file),
    ("GET", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.file),
    ("HEAD", r"/lfs/(?P<oid>\w+)", Handler.stored),
    ("GET", r"/lfs/(?P<oid>\w+)", Handler.stored),
]
