"""Clients: a steady few that count every failure, and readers of streams that notice when one is cut short."""

import contextlib
import http.client
import itertools
import json
import threading
import time

from support import API, request

QUESTION = {"model": "mock-model", "messages": [{"role": "user", "content": "Tell a short story."}], "max_tokens": 4}


class Clients:
    """Asks at a steady rate, one router after the other, and goes once to another when one fails, as SDKs do."""

    THREADS = 8

    def __init__(self, machine, routers, rate=100, retries=1, ready=lambda router: True):
        self._machine = machine
        self._routers = routers
        self._pause = self.THREADS / rate
        self._retries = retries
        self._ready = ready
        self._turns = itertools.count()
        self._stop = threading.Event()
        self.answered = 0
        self.retried = 0
        self.failures = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.THREADS)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        while not self._stop.is_set():
            began = time.monotonic()
            self._ask()
            self._stop.wait(max(0.0, self._pause - (time.monotonic() - began)))

    def _ask(self):
        errors, router = [], None
        for _ in range(1 + self._retries):
            router = self._next(router)
            if router is None:
                errors.append("no router is ready")
                continue
            try:
                answer = request(self._machine, router.machine.address, "POST", "/v1/chat/completions", QUESTION, timeout=3)
            except (OSError, http.client.HTTPException) as error:
                errors.append(f"{time.time():.3f} {router.machine}: {error!r}")
                continue
            if answer.status == 200:
                with self._lock:
                    self.answered += 1
                    self.retried += bool(errors)
                return
            errors.append(f"{time.time():.3f} {router.machine}: {answer.status} {answer.body[:200]!r}")
        with self._lock:
            self.failures.append(errors)

    def _next(self, failed):
        """The next one that is ready, and not the one that has just failed if there is another."""
        first = next(self._turns)
        turn = [self._routers[(first + step) % len(self._routers)] for step in range(len(self._routers))]
        ready = [router for router in turn if self._ready(router)]
        return next((router for router in ready if router is not failed), ready[0] if ready else None)

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)


class Balancer:
    """What a load balancer does: looks at /readiness twice a second and sends nothing to who is not ready."""

    def __init__(self, machine, routers):
        self._machine = machine
        self._ready = {router: True for router in routers}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(router,), daemon=True) for router in routers]
        for thread in self._threads:
            thread.start()

    def _watch(self, router):
        while not self._stop.wait(0.5):
            try:
                self._ready[router] = request(self._machine, router.machine.address, "GET", "/readiness", timeout=1).status == 200
            except (OSError, http.client.HTTPException):
                self._ready[router] = False

    def is_ready(self, router):
        return self._ready[router]

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5)


class StreamReader:
    """Reads one streamed answer to its end, in a thread."""

    def __init__(self, machine, router, tokens, port=API):
        self.outcome = None
        self.text = b""
        self._tcp = machine.connect(router.machine.address, port)
        self._tcp.settimeout(60)
        question = json.dumps(QUESTION | {"stream": True, "max_tokens": tokens})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: smg\r\ncontent-type: application/json\r\ncontent-length: {len(question)}\r\n\r\n"
        self._tcp.sendall((head + question).encode())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        """`whole`: ended as it should; `cut`: the connection says that something is missing; `silently cut`: it claims to
        be whole and is not."""
        try:
            answer = http.client.HTTPResponse(self._tcp)
            answer.begin()
            while more := answer.read1(4096):
                self.text += more
            self.outcome = "whole" if b"data: [DONE]" in self.text else "silently cut"
        except (OSError, http.client.HTTPException):
            self.outcome = "cut"
        finally:
            with contextlib.suppress(OSError):
                self._tcp.close()

    def end(self, within):
        self._thread.join(timeout=within)
        return self.outcome
