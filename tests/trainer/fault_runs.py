"""Training runs that are killed or starved, and an endpoint that dies: started by `test_training_faults.py`.

Each is a process of its own, forked from one that has imported TRL once, so that a start takes a second and not ten.
"""

import json
import os
import resource
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from cot import ROWS as ROWS
from datasets import load_dataset
from forks import CONTEXT as FORKS
from tiny_models import make_tokenizer
from tqdm import tqdm

from dco_trl import CoTDCOConfig, CoTDCOTrainer, DCOConfig, DCOTrainer
from dco_trl.cli import main

STEPS = 60
COMMANDS = {"direct": "train", "cot": "train-cot"}


def options_of(kind: str, place: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    """Arguments of a run, by the names of the shell's flags; it saves a checkpoint every step or two."""
    options: dict[str, Any] = {
        "model_name_or_path": str(place / "MODEL"),
        "dataset_name": str(place / "rows.jsonl"),
        "output_dir": str(output),
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "max_length": 32,
        "num_attempts": 16,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    if kind == "cot":
        # Windows of three steps: a checkpoint falls before, into and after one.
        sampling = {"num_rationales": 8, "rationale_batch": 4, "max_rationale_tokens": 8, "sampling_interval": "3"}
        training = {"targets": "sampled", "ce_warmup_steps": 4, "grader": "light_grader:last_word"}
        options |= {"save_steps": 2, **training, **sampling}
    return options | overrides


def by_shell(kind: str, options: dict[str, Any]) -> None:
    """`dco-trl train` or `train-cot`."""
    flags = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in options.items()]
    assert main([COMMANDS[kind], *flags]) == 0


def by_api(kind: str, options: dict[str, Any]) -> None:
    """The same run, through the trainer's own interface."""
    names = ("model_name_or_path", "dataset_name", "grader", "resume_from_checkpoint")
    model, data, grader, resume = (options.pop(name, None) for name in names)
    rows = load_dataset("json", data_files={"train": data})["train"]
    trainer: DCOTrainer
    if kind == "cot":
        trainer = CoTDCOTrainer(model, args=CoTDCOConfig(**options), train_dataset=rows, grader=grader)
    else:
        trainer = DCOTrainer(model, args=DCOConfig(**options), train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(options["output_dir"])


WAYS: dict[str, Callable[[str, dict[str, Any]], None]] = {"shell": by_shell, "api": by_api}


def train(kind: str, way: str, options: dict[str, Any], log: Path, size: int | None, end: Connection) -> None:
    """The target of a process: train, and send the error that ended it as it is printed, or None."""
    with open(log if size is None else os.devnull, "a") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    tqdm.set_lock(threading.RLock())  # the default is shared by all that are forked: a kill could leave it locked
    datasets.config.HF_DATASETS_CACHE = log.parent / "cache"
    if size is not None:  # writes fail in the middle, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        WAYS[way](kind, options)
        end.send(None)
    except BaseException as error:
        end.send("".join(traceback.format_exception(error, chain=False)))


class Run:
    """One start of a training run.

    Args:
        kind: "direct" or "cot".
        way: "shell" or "api".
        place: Folder of the model and the data; the log goes there.
        options: See `options_of`.
        resume: Go on from the last checkpoint.
        size: Bytes that a file may have.
    """

    def __init__(
        self, kind: str, way: str, place: Path, options: dict[str, Any], resume: bool = False, size: int | None = None
    ):
        self.output = Path(options["output_dir"])
        self.log = place / "log"
        self._end, theirs = FORKS.Pipe(duplex=False)
        options = options | ({"resume_from_checkpoint": True} if resume else {})
        self.process: BaseProcess = FORKS.Process(target=train, args=(kind, way, options, self.log, size, theirs))
        self.process.start()
        theirs.close()

    def error(self) -> str | None:
        """Wait for the end; the error that ended it."""
        error = self._end.recv()
        self.process.join()
        return error

    def wait_for_step(self, step: int) -> None:
        """Wait until a checkpoint of this step, or a later one, is at least begun."""
        while self.process.is_alive() and newest_step(self.output) < step:
            time.sleep(0.001)

    def kill(self) -> bool:
        """Kill it, and tell whether it was still at work."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -9


def newest_step(output: Path) -> int:
    """The step of the newest checkpoint, whole or not."""
    return max((int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")), default=0)


def serve(model: str, port: int, end: Connection) -> None:
    """The target of a process: an endpoint like vLLM's that knows half of the answers; sends its port.

    What it answers depends on the prompt and the seed alone. An adapter that was loaded before it died is unknown.
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
    """Start an endpoint; its process and its port."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=serve, args=(model, port, theirs), daemon=True)
    process.start()
    return process, ours.recv()
