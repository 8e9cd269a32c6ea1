"""As much of a W&B server as its client needs, on this machine, with faults to order. Nothing of it is W&B's code."""

import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k" * 40
PROJECT = {"id": "p", "name": "clipkal", "entity": {"id": "e", "name": "me"}}


@dataclass
class Server:
    """What it was told, and how it behaves: `fault(request number, path)` -> a status to refuse with, or None.

    A status below 100 means: say nothing for so many seconds, then hang up.
    """

    url: str = ""
    fault: Callable[[int, str], float | None] = lambda number, path: None
    requests: Counter[str] = field(default_factory=Counter)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    views: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)

    def history(self, run: str) -> list[dict[str, Any]]:
        """The rows of a run, without what W&B adds."""
        return [{k: v for k, v in row.items() if k[0] != "_"} for row in self.lines.get(run, [])]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """GraphQL, by the name of what is asked for."""
        if "upsertView" in query:
            self.views.append(variables)
            return {"upsertView": {"view": {"id": "v", "name": "nw-view-v"}, "inserted": True}}
        if "upsertBucket" in query:
            return self._upsert(variables)
        if "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/upload/{n}"} for n in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "createArtifactType" in query or "CreateArtifactType" in query:
            return {"createArtifactType": {"artifactType": {"id": "t"}}}
        if "createArtifact(" in query:
            self.artifacts.append(variables.get("input", variables))
            sequence = {"id": "s", "latestArtifact": None}
            return {
                "createArtifact": {
                    "artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}
                }
            }
        if "viewer" in query:
            viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "admin": False, "flags": "{}"}
            teams = {"edges": [{"node": {"name": "me"}}]}
            return {"viewer": viewer | {"teams": teams, "organizations": []}}
        if "serverInfo" in query or "serverFeatures" in query or "ServerFeatures" in query:
            return {"serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "9"}}}
        return {
            "project": PROJECT | {"artifact": None},
            "model": PROJECT | {"bucket": None},
            "entity": {"organization": None},
        }

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or "unnamed"
        kept = {key: value for key, value in variables.items() if value is not None}
        self.runs[name] = self.runs.get(name, {}) | kept
        bucket = {"id": "r", "name": name, "displayName": variables.get("displayName"), "description": None}
        bucket |= {
            "config": variables.get("config"),
            "sweepName": None,
            "project": PROJECT,
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """Takes a batch of a run's history and summary."""
        for name, part in (body.get("files") or {}).items():
            rows = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                self.lines.setdefault(run, []).extend(rows)
            elif name == "wandb-summary.json":
                self.summaries[run] = rows[-1]


@contextmanager
def serving(fault: Callable[[int, str], float | None] | None = None) -> Iterator[Server]:
    """A server on a free port of this machine."""
    server = Server()
    server.fault = fault or server.fault
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # a client that hangs up
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply({})

        def do_PUT(self) -> None:
            server.files[self.path.removeprefix("/upload/")] = self._body()
            self._reply({})

        def do_POST(self) -> None:
            body = json.loads(self._body() or b"{}")
            server.requests[self.path] += 1
            refused = server.fault(sum(server.requests.values()), self.path)
            if refused is not None and refused < 100:
                server.closing.wait(refused)
                self.close_connection = True
            elif refused is not None:
                self._reply({"errors": [{"message": "refused"}]}, int(refused))
            elif self.path.endswith("file_stream"):
                server.stream(self.path.split("/")[-2], body)
                self._reply({})
            else:
                self._reply({"data": server.answer(body.get("query", ""), body.get("variables") or {})})

        def _body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def _reply(self, content: dict[str, Any], status: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
