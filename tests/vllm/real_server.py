"""A real vLLM server on this machine's CPUs, for the time of a block."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lmpg.language.sampling.server.connection import Server, ServerGone
from tests.support.tiny import EOS, PAD, VOCABULARY, tiny_tokenizer

PROGRAM = os.environ.get("VLLM", "")
"""The path of vLLM's program in an environment of its own, see setup.sh."""
UP = 600.0
"""Seconds that a server may take to come up on a busy machine."""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}


def small_llama(folder: Path, *, tied: bool = False) -> Path:
    """A random Llama of 0.3 million weights with heads as wide as vLLM's kernels want (32)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        max_position_embeddings=128,
        initializer_range=0.08,
        eos_token_id=EOS,
        pad_token_id=PAD,
        bos_token_id=None,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


class RealServer:
    """`vllm serve` of a model; `kill` ends it at once, `start` starts it again at the same port."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._command = [PROGRAM, "serve", str(model), "--port", str(self.port)]
        self._command += ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "128"]
        self._command += ["--enforce-eager", *options]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Returns at once."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ENVIRONMENT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Returns once it answers."""
        server, start = Server(self.url, 5.0), time.monotonic()
        while True:
            try:
                server.ask("/version")
                return
            except ServerGone:
                assert self._process is not None
                assert self._process.poll() is None, self._log.read_text()[-3000:]
                assert time.monotonic() - start < UP, self._log.read_text()[-3000:]
                time.sleep(1)

    def kill(self) -> None:
        """End it and its workers, without a chance to tidy up."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def real_server(model: Path, folder: Path, *options: str) -> Iterator[RealServer]:
    """A server of `model` that answers; its log lies in `folder`."""
    server = RealServer(model, folder / "vllm.log", *options)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()
