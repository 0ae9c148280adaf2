"""What the SDK tests stand on: the real binary as router and as mock workers, on ports that the system chose.

SMG_BIN names the binary; without it the release build, else the debug build, is taken.
"""

import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 30.0


def binary():
    """The smg binary."""
    named = os.environ.get("SMG_BIN")
    built = [ROOT / "target" / profile / "smg" for profile in ("release", "debug")]
    for path in [pathlib.Path(named)] if named else built:
        if path.is_file():
            return str(path)
    raise FileNotFoundError("no smg binary: set SMG_BIN, or run cargo build --release")


def environment():
    """The environment without our own variables, which would configure what is under test, and without proxies."""
    ours = re.compile(r"SMG_.*|RUST_LOG|.*_proxy|.*_PROXY")
    return {name: value for name, value in os.environ.items() if not ours.fullmatch(name)}


class Process:
    """A child process whose lines can be waited for. Stopped at the end, whatever happens."""

    def __init__(self, arguments):
        self.lines = []
        self._new = queue.Queue()
        self._child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A model of random weights says what is not UTF-8.
            errors="replace",
            env=environment(),
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._child.stdout:
            self.lines.append(line.rstrip("\n"))
            self._new.put(line)
        self._new.put(None)

    def find(self, pattern):
        """Waits for a line that matches and returns the match."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                output = "\n".join(self.lines[-50:])
                self.stop()
                raise AssertionError(f"no line matches {pattern!r}; there were:\n{output}")
            if match := re.search(pattern, line):
                return match

    def kill(self):
        """`kill -9`."""
        self._child.kill()
        self._child.wait()

    def stop(self):
        """Asks it to end and returns its exit status; kills it when it does not."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()
        finally:
            self._child.stdout.close()


def mock_workers(count, *flags):
    """Starts mock workers; returns the process and their URLs."""
    process = Process([binary(), "mock-worker", "--count", str(count), *flags])
    return process, [process.find(r"serves .* on (http://\S+)")[1] for _ in range(count)]


def script(**faults):
    """The header that makes a mock worker fail as described."""
    return {"x-mock": json.dumps(faults)}


class Router(Process):
    """A router in front of workers, once all of them are ready."""

    def __init__(self, workers, *flags):
        own = ["--host", "127.0.0.1", "--port", "0", "--prometheus-port", "0", "--drain-settle-secs", "0"]
        super().__init__([binary(), *own, "--log-json", "--worker-urls", *workers, *flags])
        serving = self.find(r'"message":"serving"')
        self.url = "http://" + json.loads(serving.string)["address"]
        eventually(lambda: self.get("/readiness")["healthy_workers"] == len(workers), "all workers are ready")

    def ask(self, method, path, document=None, key=None):
        """An answer's document, of an admin route."""
        body = None if document is None else json.dumps(document).encode()
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)

    def get(self, path):
        return self.ask("GET", path)


def eventually(check, what):
    """Waits until `check` is true."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(0.02)
