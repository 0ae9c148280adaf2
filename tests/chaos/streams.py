"""Clients that read streams of tokens and leave at random, and workers that die while they answer."""

import collections
import http.client
import json
import random
import threading
import time

from support import API, Process, binary, eventually

TOKENS = 1_000
QUESTION = {"model": "mock-model", "messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": TOKENS}


class LeavingClients:
    """Asks for streams, and leaves three of four of them at a random time."""

    THREADS = 48

    def __init__(self, machine, routers, count, seed):
        self._machine = machine
        self._routers = routers
        self._left = count
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        # How the requests ended: "whole", "left", "cut" by a worker that died, or the status.
        self.ends = collections.Counter()
        # How often a limit refused one, which is asked again.
        self.refused = 0
        # Chunks that arrived, each with a token.
        self.chunks = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.THREADS)]
        for thread in self._threads:
            thread.start()

    def _next(self):
        """The router to ask and how long to stay, in seconds; nothing after the last request."""
        with self._lock:
            if self._left == 0:
                return None
            self._left -= 1
            stays = self._random.uniform(0.0, 0.8) if self._random.random() < 0.75 else None
            return self._random.choice(self._routers), stays

    def _run(self):
        while (request := self._next()) is not None:
            end = "refused"
            while end == "refused":
                end, chunks = self._ask(*request)
                with self._lock:
                    self.refused += end == "refused"
                if end == "refused":
                    time.sleep(0.1)
            with self._lock:
                self.ends[end] += 1
                self.chunks += chunks

    def _ask(self, router, stays):
        connection = http.client.HTTPConnection(router.machine.address, API, timeout=20)
        chunks, begin, last = 0, time.monotonic(), b""
        try:
            connection.sock = self._machine.connect(router.machine.address, API, 5)
            body = json.dumps({**QUESTION, "stream": True})
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                answer.read()
                return "refused" if answer.status == 429 else str(answer.status), 0
            while data := answer.read1(65_536):
                chunks += data.count(b'"content":')
                last = (last + data)[-64:]
                if stays is not None and time.monotonic() - begin > stays:
                    return "left", chunks
            return "whole" if b"[DONE]" in last else "cut", chunks
        except (OSError, http.client.HTTPException):
            return "cut", chunks
        finally:
            connection.close()

    def wait(self, within):
        end = time.monotonic() + within
        for thread in self._threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise AssertionError(f"after {within} s requests are left: {self.ends}")


class DyingWorker:
    """A worker that is killed and started again, until it is stopped."""

    def __init__(self, machine, port, *flags):
        self._machine = machine
        self._words = [binary(), "mock-worker", "--host", "0.0.0.0", "--port", str(port), *flags]
        self.url = f"http://{machine.address}:{port}"
        self._stop = threading.Event()
        self.deaths = 0
        self._process = self._start()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _start(self):
        process = Process(self._machine, *self._words)
        eventually("the worker serves", process.log, lambda log: " on http://" in log, 20)
        return process

    def _run(self):
        while not self._stop.wait(1.5):
            self._process.kill()
            self.deaths += 1
            self._process = self._start()

    def stop(self):
        self._stop.set()
        self._thread.join(timeout=30)
