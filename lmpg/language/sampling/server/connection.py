"""HTTP to one vLLM server: JSON in and out, and what a missing answer means."""

from __future__ import annotations

import json
import os
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from lmpg.settings.section import RunStopped

_OPEN = build_opener(ProxyHandler({})).open
"""Past any proxy: servers of a run stand beside it."""
_GONE = {500, 502, 503, 504}
"""What a server that is about to end, or to come up, answers."""
_LACKS = ("/v1/completions", 404)
"""So answers one that was started anew, or that is just loading, of an adapter that it lacks."""
_LONGEST_REASON = 400
"""Characters of what a server says."""
_LONGEST_PAUSE = 30.0
"""Seconds between two looks for a server that has gone."""


class ServerGone(Exception):
    """A server did not answer, or only to say that it cannot: it may come back."""


class Server:
    """One vLLM server.

    timeout: seconds that an answer, or the return of a server that has gone, is waited for. model:
    what it calls the model that is sampled from.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self.timeout = timeout
        self.model = ""

    def ask(self, path: str, body: Any = None, seconds: float | None = None) -> Any:
        """The JSON that it answers, None where that is none: to a POST where there is a body, to a
        GET else. ServerGone where no answer comes in `seconds`, RunStopped where it refuses."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, headers)
        try:
            with _OPEN(request, timeout=self.timeout if seconds is None else seconds) as answer:
                text = answer.read()
        except HTTPError as error:
            said = error.read().decode(errors="replace")[:_LONGEST_REASON]
            if error.code in _GONE or (path, error.code) == _LACKS:
                raise ServerGone(
                    f"{self.url}: {path} was answered with {error.code} {said}"
                ) from None
            raise RunStopped(
                f"sampling.server = {self.url}: {path} was refused with {error.code} {said}"
            ) from None
        except (OSError, HTTPException) as error:
            why = getattr(error, "reason", error)
            raise ServerGone(f"{self.url} did not answer ({why or repr(error)})") from None
        try:
            return json.loads(text) if text.strip() else None
        except ValueError:
            return None

    def post(self, path: str, body: Any = None) -> Any:
        """What it answers to a POST that changes it."""
        return self.ask(path, {} if body is None else body)

    def wait(self) -> float:
        """Returns once it answers again, with the seconds that this took; RunStopped where it does
        not within its time."""
        start, pause = time.monotonic(), 0.1
        while True:
            try:
                self.ask("/version", seconds=min(self.timeout, 10.0))
                return time.monotonic() - start
            except ServerGone as error:
                waited = time.monotonic() - start
                if waited + pause > self.timeout:
                    raise RunStopped(
                        f"sampling.server: {error} for {waited:.0f} s, and "
                        f"sampling.server_timeout = {self.timeout:g} s are over. Start it again"
                    ) from None
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
