"""A W&B server on the loopback interface: as much of one as `wandb sync` asks for. It proves the wiring, not W&B."""

import collections
import contextlib
import dataclasses
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclasses.dataclass
class ReceivedRun:
    """One run as the server would show it: what was said at its start, its history in order, its last summary."""

    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    starts: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in json.loads(self.about["config"]).items() if key != "_wandb"}


@dataclasses.dataclass
class Server:
    url: str = ""
    runs: dict[str, ReceivedRun] = dataclasses.field(default_factory=lambda: collections.defaultdict(ReceivedRun))

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL answer; null fields stand for "this server does not have it"."""
        project = {"id": "UDE=", "name": variables.get("project"), "entity": {"id": "RTE=", "name": "me"}}
        name = variables.get("name") or ""
        if "upsertBucket" in query:
            run = self.runs[name]
            if variables.get("groupName"):  # later messages repeat only what changed
                run.starts += 1
            run.about.update({key: value for key, value in variables.items() if value is not None})
            bucket = {"id": "QjE=", "name": name, "displayName": name, "config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": run.starts == 1}}
        if "RunResumeStatus" in query:
            return {"model": {**project, "bucket": self.resumable(name)}}
        if "createRunFiles" in query:
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "QjE=", "uploadHeaders": [], "files": files}}
        return {"viewer": {"id": "VTE=", "entity": "me", "username": "me", "flags": "{}"}, "serverInfo": None}

    def resumable(self, name: str) -> dict[str, Any] | None:
        if name not in self.runs or not self.runs[name].history:
            return None
        run = self.runs[name]
        tails = {"historyTail": json.dumps([json.dumps(run.history[-1])]), "eventsTail": "[]"}
        counts = {"historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0}
        rest = {"summaryMetrics": json.dumps(run.summary), "config": "{}", "wandbConfig": '{"t": 1}', "tags": []}
        return {"id": "QjE=", "name": name, "displayName": name, "notes": None, **tails, **counts, **rest}

    def stream(self, name: str, message: dict[str, Any]) -> None:
        run = self.runs[name]
        files = message.get("files", {})
        if "wandb-history.jsonl" in files:
            offset = files["wandb-history.jsonl"]["offset"]  # a line number: the server overwrites from there
            run.history[offset:] = [json.loads(line) for line in files["wandb-history.jsonl"]["content"]]
        if "wandb-summary.json" in files:
            run.summary = json.loads(files["wandb-summary.json"]["content"][-1])
        if message.get("complete"):
            run.exit_code = message["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_HTTPServer"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        message = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        if self.path == "/graphql":
            return self.reply({"data": self.server.state.answer(message["query"], message.get("variables") or {})})
        self.server.state.stream(self.path.split("/")[-2], message)
        self.reply({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.reply({})

    def do_GET(self) -> None:
        self.reply({})

    def reply(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    state: Server


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that listens on a free port while the block runs."""
    with _HTTPServer(("127.0.0.1", 0), _Handler) as http:
        http.state = Server(url=f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield http.state
        finally:
            http.shutdown()
            thread.join()
