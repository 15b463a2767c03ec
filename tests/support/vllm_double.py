"""A server that speaks what lmpg uses of vLLM's protocol and samples from a tiny model, and the
faults that a real one may have."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmpg.language.models.precision import quiet

NAME = "served"


class Row:
    """A response on its way."""

    def __init__(self, prompt: list[int], seed: int | None) -> None:
        self.ids, self.prompt, self.logprobs = list(prompt), len(prompt), []
        self.reason = "length"
        self.drawn = torch.Generator()
        if seed is None:
            self.drawn.seed()
        else:
            self.drawn.manual_seed(seed)

    def choice(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "finish_reason": self.reason,
            "token_ids": self.ids[self.prompt :],
            "logprobs": {"token_logprobs": self.logprobs},
        }


class VllmDouble(ThreadingHTTPServer):
    """asked: the paths in their order. seeds: of the requests. Faults and options are fields."""

    daemon_threads = True

    def __init__(self, folder: str | Path, port: int = 0, **options: Any) -> None:
        super().__init__(("127.0.0.1", port), Answers)
        self.folder, self.asked, self.seeds = str(folder), [], []
        self.context, self.dev, self.cpu = 64, True, False
        self.processed = False  # --logprobs-mode processed_logprobs
        self.keeps_output_layer = False  # as the CPU build does with tied embeddings
        self.ignores = ""  # a path whose order is carried out in word only
        self.wide = False  # another tokenizer
        self.busy = 0.0  # seconds before each response
        self.breaks = 0  # so many requests for responses are broken off, as if it were killed
        self.lock = threading.Lock()
        vars(self).update(options)
        self.start_anew()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start_anew(self) -> None:
        """With the weights of its folder, and nothing loaded since."""
        with quiet():
            self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.adapters: dict[str, Any] = {}
        self.known: dict[tuple[int, ...], Tensor] = {}  # prompts and their next token's logits
        self.paused = False

    @torch.no_grad()
    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        """As /v1/completions answers."""
        if self.breaks > 0 and body.get("return_token_ids"):
            self.breaks -= 1
            self.start_anew()
            raise ConnectionAbortedError
        model = self.model if body["model"] == NAME else self.adapters[body["model"]]
        if body.get("prompt_logprobs") is not None:
            return {"choices": [self._of_prompt(model, body)]}
        time.sleep(self.busy)
        self.seeds.append(body["seed"])
        seeds = [None if body["seed"] is None else body["seed"] + i for i in range(body["n"])]
        rows = [Row(body["prompt"], seed) for seed in seeds]
        for step in range(body["max_tokens"]):
            if not (going := [row for row in rows if row.reason == "length"]):
                break
            for row, logits in zip(going, self._logits(model, body["model"], going, step)):
                self._append(row, logits, body, step)
        return {"choices": [row.choice(i) for i, row in enumerate(rows)]}

    def _of_prompt(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        rows = [{str(i): {"logprob": float(logprobs[t, i])}} for t, i in enumerate(ids[1:])]
        return {"index": 0, "prompt_logprobs": [None, *rows]}

    def _append(self, row: Row, logits: Tensor, body: dict[str, Any], step: int) -> None:
        """One token more."""
        raw = processed = logits.log_softmax(-1)
        for token, bias in (body["logit_bias"] or {}).items():
            logits[int(token)] += bias
        if step < body["min_tokens"]:
            logits[body["stop_token_ids"]] = -torch.inf
        token = int(logits.argmax())
        if body["temperature"]:
            processed = (logits / body["temperature"]).log_softmax(-1)
            token = int(torch.multinomial(processed.exp(), 1, generator=row.drawn))
        row.ids.append(token)
        row.logprobs.append(float((processed if self.processed else raw)[token]))
        text = self.tokenizer.decode(row.ids[row.prompt :]) if body["stop"] else ""
        if token in body["stop_token_ids"] or any(x in text for x in body["stop"]):
            row.reason = "stop"

    def _logits(self, model: Any, name: str, rows: list[Row], step: int) -> Tensor:
        """Of the next token of rows of one length; what follows a prompt is kept, as a prefix cache
        would."""
        key = (hash(name), *rows[0].ids)
        if step or key not in self.known:
            found = model(torch.tensor([row.ids for row in rows])).logits[:, -1].double()
            if step:
                return found
            self.known[key] = found
        return self.known[key][:1].repeat(len(rows), 1)

    def order(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What changes the server."""
        if path == self.ignores:
            return {}
        if path == "/pause":
            self.paused = True
        elif path == "/resume":
            self.paused = False
        elif path == "/reset_prefix_cache":
            self.known = {}
        elif path == "/collective_rpc" and body["method"] == "reload_weights":
            assert self.paused
            old = self.model.get_output_embeddings().weight.detach().clone()
            with quiet():
                self.model = AutoModelForCausalLM.from_pretrained(
                    body["kwargs"]["weights_path"]
                ).eval()
            if self.keeps_output_layer:
                self.model.get_output_embeddings().weight.data.copy_(old)
        elif path == "/v1/load_lora_adapter":
            with quiet():
                base = AutoModelForCausalLM.from_pretrained(self.folder)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft's, of what it calls itself
                adapted = PeftModel.from_pretrained(base, body["lora_path"])
            self.adapters[body["lora_name"]] = adapted.merge_and_unload().eval()
        elif path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
        else:
            raise KeyError(path)
        return {}

    def told(self, path: str) -> dict[str, Any]:
        """What the server says of itself."""
        if path == "/version":
            return {"version": "0.0.double"}
        if path == "/v1/models":
            adapters = [{"id": name, "parent": NAME} for name in self.adapters]
            return {"data": [{"id": NAME, "max_model_len": self.context}, *adapters]}
        if path == "/server_info" and self.dev:
            return {
                "vllm_config": {
                    "device_config": {"device_type": "cpu" if self.cpu else "cuda"},
                }
            }
        raise KeyError(path)


class Answers(BaseHTTPRequestHandler):
    server: VllmDouble

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(lambda path, body: self.server.told(path))

    def do_POST(self) -> None:
        self._answer(self._posted)

    def _posted(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/tokenize":
            ids = self.server.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
            return {"tokens": [i + self.server.wide for i in ids]}
        if path == "/v1/completions":
            with self.server.lock:
                return self.server.completions(body)
        return self.server.order(path, body)

    def _answer(self, found: Any) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        parts = urlsplit(self.path)
        self.server.asked.append(parts.path + "".join(parse_qs(parts.query).get("mode", [])))
        try:
            status, content = 200, found(parts.path, body)
        except ConnectionAbortedError:
            self.close_connection = True
            return
        except KeyError as error:
            status, content = 404, {"error": f"nothing is called {error}"}
        text = json.dumps(content).encode()
        with suppress(BrokenPipeError, ConnectionResetError):  # nobody waits for it any more
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)


@contextmanager
def serving(folder: str | Path, **options: Any) -> Iterator[VllmDouble]:
    """A server of the model in `folder` for the time of the block."""
    server = VllmDouble(folder, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
