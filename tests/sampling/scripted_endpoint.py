"""A small OpenAI-compatible endpoint on the loopback address, which fails on purpose."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from word_llama import CONTEXT

from dco_trl.sampling import ServerSampler

NOT_FOUND = 404, {"error": {"message": "Not Found"}}
REASONS = {"ok": "stop", "short": "stop", "none": None}


class Endpoint:
    """Serves "small" and "other", and answers each completion with its seed, if any.

    `script` says how the next requests for samples go: "ok", a status code, a status code with headers (and content),
    "drop" (closes the connection), "drip" and "drip headers" (a byte every 0.05 s, for hours), bytes to answer with, a
    function that changes the answer, "short" (one sample less), or the finish reason to give.
    """

    def __init__(self, owned_by):
        self.script, self.bodies, self.gets, self.owned_by, self.lock = [], [], [], owned_by, threading.Lock()
        self.in_flight = self.most_in_flight = 0
        self.served = ["small", "other"]
        self.answers = {}  # to other POSTs, by path: status and content
        handler = type("EndpointHandler", (Handler,), {"endpoint": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.root = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def sampler(self, **options):
        return ServerSampler("small", **{"base_url": self.root + "/v1", "progress": False, **options})


class Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint

    def log_message(self, *args):
        pass

    def reply(self, status, content, headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (("Content-Length", str(len(data))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def drip(self, start):
        with contextlib.suppress(OSError):
            self.wfile.write(start)
            while True:
                self.wfile.write(b" ")
                time.sleep(0.05)

    def do_GET(self):
        self.endpoint.gets.append((self.path, self.headers.get("Authorization")))
        entry = {"owned_by": self.endpoint.owned_by, "max_model_len": CONTEXT}
        content = {
            "/v1/models": {"data": [{"id": name, **entry} for name in self.endpoint.served]},
            "/version": {"version": "0.0"},
            "/page/models": b"<html>Welcome</html>",
        }
        self.reply(*((200, content[self.path]) if self.path in content else NOT_FOUND))

    def do_POST(self):
        endpoint, body = self.endpoint, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.bodies.append({**body, "path": self.path})
            if not self.path.endswith("/completions"):
                return self.reply(*endpoint.answers.get(self.path, NOT_FOUND))
            what = endpoint.script.pop(0) if endpoint.script else "ok"
            endpoint.in_flight += 1
            endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
        time.sleep(0.02)
        with endpoint.lock:
            endpoint.in_flight -= 1
        if what == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            return self.connection.close()
        if what == "drip":
            return self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        if what == "drip headers":
            return self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        if isinstance(what, bytes):
            return self.reply(200, what)
        if isinstance(what, int):
            what = (what, [])
        if isinstance(what, tuple):
            status, headers, *content = what
            return self.reply(status, *(content or [{"error": {"message": f"said {status}"}}]), headers)
        choices = []
        for index in range(body["n"] - (what == "short")):
            text = f"{body['seed'] + index}" if "seed" in body else "no seed"
            said = {"message": {"content": text}} if "chat" in self.path else {"text": text}
            ids = {"token_ids": [5, 6, 1]} if body.get("return_token_ids") else {}
            reason = "stop" if callable(what) else REASONS.get(what, what)
            choices.append({"index": index, "finish_reason": reason, **said, **ids})
        # In reverse order: what counts is the index.
        answer = {"id": "1", "choices": choices[::-1], "usage": {"completion_tokens": 7}}
        self.reply(200, what(answer) if callable(what) else answer)


MISSING = object()


def changed(**changes):
    """A function that changes the first choice of an answer."""

    def change(answer):
        choice = {**answer["choices"][0], **changes}
        answer["choices"][0] = {name: value for name, value in choice.items() if value is not MISSING}
        return answer

    return change
