"""Three routers behind the load balancers of `deploy/`: the shipped files, real HAProxy and nginx, and clients that count.

A router that drains costs no request, one that is killed at most one request in a thousand, and a long stream ends whole while
a router drains. SMG_STREAM_SECONDS makes the long stream longer (a few seconds are the default; 600 is worth a run by hand).

Needs haproxy, nginx and keepalived; a test without its program is skipped.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "sdk"))

from support import Process, binary, eventually, mock_workers  # noqa: E402

HAPROXY, NGINX, KEEPALIVED = (
    shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") for name in ("haproxy", "nginx", "keepalived")
)
STREAM_SECONDS = float(os.environ.get("SMG_STREAM_SECONDS", "7"))
TOKENS_PER_SECOND = 20
CLIENTS = 8
# Between two requests of a client, in seconds: shorter when the test is short.
PAUSE = min(0.05, STREAM_SECONDS / 3500)
# Requests after a router was killed: one in a thousand of them may fail.
AFTER_A_KILL = 2000


def free_port():
    """A port that nobody listens on now. A restarted router needs the port that it had."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def replaced(text, old, new):
    """`text` with its one `old` replaced: a shipped file that no longer contains it fails the test."""
    if text.count(old) != 1:
        raise AssertionError(f"{old!r} is {text.count(old)} times in the file")
    return text.replace(old, new)


class Router(Process):
    """A router with the times of its defaults: five seconds between the 503 of /readiness and the closed port."""

    def __init__(self, port, workers, name, peers):
        self.port = port
        listen = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", "0"]
        mesh = ["--enable-mesh", "--mesh-server-name", name, "--mesh-host", "127.0.0.1", "--mesh-port", "0"]
        if peers:
            mesh += ["--mesh-peer-urls", ",".join(peers)]
        grace = ["--shutdown-grace-period-secs", str(int(STREAM_SECONDS) + 180)]
        super().__init__([binary(), *listen, *mesh, *grace, "--log-json", "--worker-urls", *workers])
        self.find(r'"message":"serving"')
        self.name, self._workers, self._peers = name, workers, peers
        eventually(self.is_ready, f"{name} is ready")

    @property
    def mesh(self):
        events = (json.loads(line) for line in self.lines if line.startswith("{"))
        return next(event["address"] for event in events if event.get("message") == "mesh")

    def is_ready(self):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            connection.request("GET", "/readiness")
            return connection.getresponse().status == 200

    def drain(self):
        """SIGTERM; returns at once."""
        self._child.send_signal(signal.SIGTERM)

    def wait(self, seconds):
        return self._child.wait(timeout=seconds)

    def again(self):
        """The same router, started again at the same port."""
        return Router(self.port, self._workers, self.name, self._peers)


def chat(stream, tokens, text="Hello", model="mock-model"):
    document = {"model": model, "max_tokens": tokens, "stream": stream}
    return json.dumps(document | {"messages": [{"role": "user", "content": text}]})


def ask(connection, body):
    """Sends a chat and returns what is wrong with the answer, or None. A stream must be whole."""
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        return f"{answer.status} {content[:200]!r}"
    if answer.headers["content-type"].startswith("text/event-stream") and b"data: [DONE]" not in content:
        return f"cut after {len(content)} bytes"
    return None


class Clients:
    """Clients on connections that they keep, each with one request after the other, half of them streams."""

    def __init__(self, port):
        self._port = port
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.failures = []
        self._threads = [threading.Thread(target=self._run, args=(nth,), daemon=True) for nth in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self, nth):
        connection, turn = None, nth
        while not self._over.wait(PAUSE):
            turn += 1
            connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                failure = ask(connection, chat(stream=turn % 2 == 0, tokens=2, text=f"{nth} {turn} " + "word " * 200))
            except (OSError, http.client.HTTPException) as error:
                failure = repr(error)
            if failure:
                connection.close()
                connection = None
            with self._lock:
                self.answered += failure is None
                if failure:
                    self.failures.append(f"{time.strftime('%T')} {failure}")
        if connection:
            connection.close()

    def answer(self, count):
        """Waits until so many more requests were answered."""
        enough = self.answered + count
        eventually(lambda: self.answered >= enough, f"{count} more requests are answered; failures: {self.failures[:5]}")

    def stop(self):
        self._over.set()
        for thread in self._threads:
            thread.join()


class LongStream(threading.Thread):
    """A stream of STREAM_SECONDS, read to its end."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.began = threading.Event()
        self.chunks, self.seconds, self.failure = 0, 0.0, None
        self._port = port
        self._tokens = int(STREAM_SECONDS * TOKENS_PER_SECOND)
        self.start()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        began = time.monotonic()
        try:
            body = chat(stream=True, tokens=self._tokens, model="slow")
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            last = b""
            for line in answer:
                if line.startswith(b"data: "):
                    self.chunks, last = self.chunks + 1, line
                    self.began.set()
            if answer.status != 200 or last.strip() != b"data: [DONE]":
                self.failure = f"{answer.status}, and the last of {self.chunks} events is {last!r}"
        except (OSError, http.client.HTTPException) as error:
            self.failure = f"{error!r} after {self.chunks} events"
        self.seconds = time.monotonic() - began
        self.began.set()
        connection.close()


class Front:
    """What both load balancers go through. The subclass starts one in front of `self.routers`, at `self.port`."""

    def setUp(self):
        workers, self.workers = mock_workers(2)
        self.addCleanup(workers.stop)
        slow, self.slow = mock_workers(1, "--model", "slow", "--decode-tokens-per-second", str(TOKENS_PER_SECOND))
        self.addCleanup(slow.stop)
        self.routers = []
        self.addCleanup(self.kill_routers)
        for name in ("node1", "node2", "node3"):
            peers = [router.mesh for router in self.routers]
            self.routers.append(Router(free_port(), self.workers + self.slow, name, peers))
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        # nginx' workers run as another user.
        self.directory.chmod(0o755)
        self.port = free_port()
        self.start_load_balancer()

    def kill_routers(self):
        """Ends the routers without the five seconds that each would take to drain."""
        for router in self.routers:
            router.kill()
            router.stop()

    def test_draining_costs_nothing_and_killing_next_to_nothing(self):
        clients = Clients(self.port)
        self.addCleanup(clients.stop)
        clients.answer(200)

        streams = [LongStream(self.port) for _ in range(3)]
        for stream in streams:
            stream.began.wait(30)
        leaving = self.routers[2]
        leaving.drain()
        self.assertEqual(leaving.wait(STREAM_SECONDS + 60), 0, "the router ended without cutting a request")
        clients.answer(300)
        for stream in streams:
            stream.join(STREAM_SECONDS + 60)
            self.assertIsNone(stream.failure)
            self.assertGreater(stream.seconds, STREAM_SECONDS * 0.9)
        self.assertEqual(clients.failures, [], "a router drained")

        leaving.stop()
        self.routers[2] = leaving.again()
        self.wait_until_all_are_used()
        self.assertEqual(clients.failures, [], "a router came back")

        before = clients.answered
        self.routers[0].kill()
        clients.answer(AFTER_A_KILL)
        clients.stop()
        asked = clients.answered - before + len(clients.failures)
        print(f"{clients.answered} requests; after the kill {asked}, of which failed: {clients.failures}", file=sys.stderr)
        self.assertLessEqual(len(clients.failures), asked // 1000, f"{clients.failures} of {asked}")

    def requests_of(self, router):
        """How many requests a router has answered."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", router.port, timeout=5)) as connection:
            connection.request("GET", "/metrics")
            metrics = connection.getresponse().read().decode()
        return sum(float(value) for value in re.findall(r"^smg_router_requests_total\{.*\} (\S+)$", metrics, re.MULTILINE))

    def wait_until_all_are_used(self):
        for router in self.routers:
            eventually(lambda: self.requests_of(router) > 20, f"{router.name} gets requests")


@unittest.skipUnless(HAPROXY, "haproxy is not installed")
class Haproxy(Front, unittest.TestCase):
    def start_load_balancer(self):
        text = (ROOT / "deploy" / "haproxy" / "smg.cfg").read_text()
        text = replaced(text, "bind :8080\n", f"bind 127.0.0.1:{self.port}\n")
        text = replaced(text, "bind 127.0.0.1:8404\n", f"bind 127.0.0.1:{free_port()}\n")
        for nth, router in enumerate(self.routers, 1):
            text = replaced(text, f"192.0.2.1{nth}:8000", f"127.0.0.1:{router.port}")
        path = self.directory / "smg.cfg"
        path.write_text(text)
        process = Process([HAPROXY, "-db", "-f", str(path)])
        self.addCleanup(process.stop)
        eventually(lambda: is_up(self.port), "haproxy answers")
        self.wait_until_checked()

    def wait_until_checked(self):
        """Until the checks have found all routers ready."""
        clients = Clients(self.port)
        try:
            self.wait_until_all_are_used()
        finally:
            clients.stop()


@unittest.skipUnless(NGINX, "nginx is not installed")
class Nginx(Front, unittest.TestCase):
    def start_load_balancer(self):
        text = (ROOT / "deploy" / "nginx" / "smg.conf").read_text()
        text = replaced(text, "listen 8080;\n", f"listen 127.0.0.1:{self.port};\n")
        for nth, router in enumerate(self.routers, 1):
            text = replaced(text, f"192.0.2.1{nth}:8000", f"127.0.0.1:{router.port}")
        (self.directory / "smg.conf").write_text(text)
        main = self.directory / "nginx.conf"
        main.write_text(nginx_main(self.directory))
        process = Process([NGINX, "-c", str(main), "-p", str(self.directory), "-g", "daemon off;"])
        self.addCleanup(process.stop)
        eventually(lambda: is_up(self.port), "nginx answers")


def nginx_main(directory):
    """A file that includes the shipped one, as /etc/nginx/nginx.conf does; everything that nginx writes goes to `directory`."""
    temporary = "".join(f"    {kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return (
        f"error_log stderr warn;\npid {directory}/pid;\nworker_processes 2;\nevents {{ worker_connections 1024; }}\n"
        f"http {{\n    access_log off;\n{temporary}    include {directory}/smg.conf;\n}}\n"
    )


def is_up(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def check(*command):
    """Exit status and all output of a program that checks a file."""
    # keepalived ends the whole process group of its check.
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, start_new_session=True
    )
    return done.returncode, done.stdout


class Files(unittest.TestCase):
    """The shipped files as they are, by the programs' own checks: not a warning."""

    @unittest.skipUnless(HAPROXY, "haproxy is not installed")
    def test_haproxy_accepts_its_file(self):
        status, output = check(HAPROXY, "-c", "-f", str(ROOT / "deploy" / "haproxy" / "smg.cfg"))
        self.assertEqual((status, output.strip()), (0, "Configuration file is valid"))

    @unittest.skipUnless(NGINX, "nginx is not installed")
    def test_nginx_accepts_its_file(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            shutil.copy(ROOT / "deploy" / "nginx" / "smg.conf", directory)
            (directory / "nginx.conf").write_text(nginx_main(directory))
            status, output = check(NGINX, "-t", "-c", f"{directory}/nginx.conf", "-p", name)
        self.assertEqual(status, 0, output)
        self.assertNotIn("[warn]", output)

    @unittest.skipUnless(KEEPALIVED, "keepalived is not installed")
    def test_keepalived_accepts_its_file(self):
        text = (ROOT / "deploy" / "keepalived" / "keepalived.conf").read_text()
        present = [name for name in os.listdir("/sys/class/net") if name != "lo"]
        if not present:
            self.skipTest("keepalived needs a network interface")
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
            file.write(replaced(text, "interface eth0", f"interface {present[0]}"))
            file.flush()
            _, output = check(KEEPALIVED, "--config-test", "--log-console", "--use-file", file.name)
            self.assertEqual(output, "")
            # Is a mistake reported?
            file.write("vrrp_instance other {\n prority 1\n}\n")
            file.flush()
            self.assertIn("prority", check(KEEPALIVED, "--config-test", "--log-console", "--use-file", file.name)[1])


if __name__ == "__main__":
    unittest.main()
