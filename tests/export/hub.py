"""A server on this machine that speaks the hub's protocol, as far as a push needs it: real sockets, and faults on request.

Written from what the hub documents and huggingface_hub sends: create, validate-yaml, preupload, LFS batch, PUT and verify, commit as
lines of JSON. It holds what was committed, and whether an LFS object has the hash that was announced.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_the_tests"


class Hub:
    """fault: "cut" breaks each upload of a large file off; "full" answers 507 to commits."""

    def __init__(self, url: str) -> None:
        self.url, self.fault = url, ""
        self.repositories: dict[str, dict[str, Any]] = {}  # USER/NAME: private, files
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []  # method and path of every request
        self.received: list[bytes] = []  # every body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        data = json.dumps({} if content is None else content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.received.append(data)
        return data

    def handle_one(self, method: str) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{method} {path}")
        if method == "PUT" and self.hub.fault == "cut":
            self.rfile.read(1000)  # a part of it
            self.close_connection = True
            self.connection.shutdown(2)
            return
        data = self.body()
        if method != "PUT" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid user token."})
        if method == "PUT":
            oid = path.rpartition("/")[2]
            if hashlib.sha256(data).hexdigest() != oid:
                return self.answer(400, {"error": "another hash"})
            self.hub.objects[oid] = data
            return self.answer(200)
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        if path == "/api/validate-yaml":
            return self.validate(json.loads(data)["content"])
        name = path.removeprefix("/api/models/").removeprefix("/").partition(".git/")[0]
        name = "/".join(name.split("/")[:2])
        held = self.hub.repositories.get(name)
        if held is None:
            return self.answer(404, {"error": "no such repository"}, **{"X-Error-Code": "RepoNotFound"})
        self.in_repository(name, held, path, data)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo"})
        private = asked.get("private", asked.get("visibility") == "private")  # older and newer words for it
        self.hub.repositories[name] = {"private": private, "files": {".gitattributes": b""}}
        self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def validate(self, content: str) -> None:
        """The licences are those that the hub has a word for, as far as these tests go."""
        head = yaml.safe_load(content.split("---")[1])
        known = head.get("license", "other") in ("mit", "apache-2.0", "other")
        problems = [] if known else [{"message": f'"license" must be one of mit, other: {head["license"]}'}]
        self.answer(400 if problems else 200, {"errors": problems, "warnings": []})

    def in_repository(self, name: str, held: dict[str, Any], path: str, data: bytes) -> None:
        if path.endswith("/objects/batch"):
            rows = json.loads(data)["objects"]
            actions = [
                {
                    **row,
                    "actions": {
                        "upload": {"href": f"{self.hub.url}/objects/{row['oid']}"},
                        "verify": {"href": f"{self.hub.url}/{name}/verify"},
                    },
                }
                for row in rows
            ]
            return self.answer(200, {"transfer": "basic", "objects": actions})
        if path.endswith("/verify"):
            asked = json.loads(data)
            whole = len(self.hub.objects.get(asked["oid"], b"")) == asked["size"]
            return self.answer(200 if whole else 404)
        if "/preupload/" in path:
            rows = json.loads(data)["files"]
            return self.answer(
                200,
                {
                    "files": [
                        {
                            "path": row["path"],
                            "uploadMode": "lfs" if row["path"].endswith(".safetensors") else "regular",
                            "shouldIgnore": False,
                        }
                        for row in rows
                    ]
                },
            )
        if "/commit/" in path:
            if self.hub.fault == "full":
                return self.answer(507, {"error": "no room"})
            for line in map(json.loads, data.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    held["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    held["files"][value["path"]] = self.hub.objects[value["oid"]]
            oid = "c" * 40
            return self.answer(
                200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}
            )
        siblings = [{"rfilename": file} for file in held["files"]]
        self.answer(200, {"id": name, "private": held["private"], "siblings": siblings, "sha": "a" * 40})

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_POST(self) -> None:
        self.handle_one("POST")

    def do_PUT(self) -> None:
        self.handle_one("PUT")


@contextmanager
def served() -> Iterator[Hub]:
    """Serves on a free port of this machine until left."""
    handler = type("Of", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield handler.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
