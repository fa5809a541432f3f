"""An endpoint like vLLM's that dies and comes back, for `test_training_faults.py`."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from forks import CONTEXT
from tiny_models import make_tokenizer


def serve(model: str, port: int, end: Connection) -> None:
    """The target of a process: it knows half of the answers, and sends its port.

    Its answers depend on the prompt and the seed alone. It forgets adapters when it dies.
    """
    tokenizer = make_tokenizer()
    adapters: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, status: int, answer: Any) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.reply(200, {"object": "list", "data": [{"id": model, "owned_by": "vllm", "max_model_len": 256}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/load_lora_adapter":
                assert Path(body["lora_path"], "adapter_model.safetensors").is_file()
                adapters.add(body["lora_name"])
                return self.reply(200, {})
            if self.path == "/v1/unload_lora_adapter":
                adapters.discard(body["lora_name"])
                return self.reply(200, {})
            if body["model"] not in adapters:
                return self.reply(404, {"error": {"message": f"The model {body['model']} does not exist."}})
            terms = tokenizer.decode(body["prompt"]).rstrip("=").split("+")
            choices = []
            for index in range(body["n"]):
                wrong = int(np.random.default_rng(body["seed"] + index).integers(2))
                ids = tokenizer(f"{'+'.join(terms)} {sum(map(int, terms)) + wrong}")["input_ids"]
                ids = [*ids, tokenizer.eos_token_id]
                choices.append({"index": index, "text": "", "finish_reason": "stop", "token_ids": ids})
            self.reply(200, {"choices": choices})

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    end.send(server.server_port)
    server.serve_forever()


def start_endpoint(model: str, port: int = 0) -> tuple[BaseProcess, int]:
    """Start an endpoint, and return its process and its port."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=serve, args=(model, port, theirs), daemon=True)
    process.start()
    return process, ours.recv()
