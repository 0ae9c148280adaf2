"""A router that may use 256 MiB, and everything that costs memory at once."""

import concurrent.futures
import os
import pathlib
import re
import sys
import time
import unittest

from support import API, MESH, ChaosTest, Process, Router, binary, eventually, request

LIMIT = 256 << 20
MODELS = 10_000
PAGE_BYTES = 15_000_000

# Servers that list many models and have a very long page of metrics.
WORKERS = """
import http.server, json, sys, threading
models = json.dumps({"object": "list", "data": [{"id": f"model-{n}", "object": "model"} for n in range(%d)]}).encode()
line = 'engine_%%d_bucket{engine="0",model_name="some/model",le="%%d.5"} %%d\\n'
page = "".join(line %% (n // 200, n %% 200, n) for n in range(%d)).encode()
chat = json.dumps({"id": "c", "object": "chat.completion", "choices": []}).encode()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def answer(self, body):
        self.send_response(200)
        self.send_header("content-type", "text/plain" if body is page else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer({"/v1/models": models, "/metrics": page}.get(self.path, b"{}"))
    def do_POST(self):
        left = int(self.headers.get("content-length", 0))
        while left:
            left -= len(self.rfile.read(min(left, 1 << 16)) or b"x" * left)
        self.answer(chat)

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512

for port in range(9001, 9005):
    threading.Thread(target=Server(("0.0.0.0", port), Handler).serve_forever).start()
print("serving", flush=True)
"""


class ControlGroup:
    """A control group with a limit of memory."""

    def __init__(self, name):
        roots = [pathlib.Path("/sys/fs/cgroup/memory"), pathlib.Path("/sys/fs/cgroup")]
        self.root = next(root for root in roots if root.is_dir())
        self.version = 1 if self.root.name == "memory" else 2
        self.path = self.root / name
        self.path.mkdir()
        try:
            self.write("memory.limit_in_bytes" if self.version == 1 else "memory.max", LIMIT)
        except OSError:
            self.path.rmdir()
            raise

    def write(self, file, value):
        (self.path / file).write_text(f"{value}\n")

    def peak(self):
        file = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return int((self.path / file).read_text())

    def remove(self):
        for _ in range(50):
            try:
                return self.path.rmdir()
            except OSError:
                time.sleep(0.1)


class Memory(ChaosTest):
    def group(self):
        try:
            group = ControlGroup(f"smgchaos-{os.getpid()}")
        except OSError as error:
            print(f"\n!!! SKIPPED: {self.id()}: no control group with a memory limit: {error}", file=sys.stderr)
            self.skipTest("needs a control group with a memory limit")
        # Cleanups run in reverse order, so that the processes have ended before.
        self._cleanups.insert(0, (group.remove, (), {}))
        return group

    def start(self, group):
        workers = self.network.machine("workers")
        lines = PAGE_BYTES // 70
        servers = Process(workers, sys.executable, "-c", WORKERS % (MODELS, lines))
        eventually("the workers serve", servers.log, lambda log: "serving" in log, 30)
        machine = self.network.machine("node1")
        urls = ",".join(f"http://{workers.address}:{port}" for port in range(9001, 9005))
        # The network namespace has a /sys of its own, without the control groups.
        mounts = {
            1: "mount -t tmpfs none $root && mkdir $root/memory && mount -t cgroup -o memory none $root/memory",
            2: "mount -t cgroup2 none $root",
        }
        enter = f'root=/sys/fs/cgroup; {mounts[group.version]} && echo $$ > "$1" || exit 99; shift; exec "$@"'
        flags = ["--enable-mesh", "--mesh-server-name", "node1", "--mesh-peer-urls", f"node1:{MESH}", "--admin-open"]
        router = Router(
            machine, "sh", "-c", enter, "sh", str(group.path / "cgroup.procs"), binary(), *flags, "--log-json", "--worker-urls", urls
        )
        ready = lambda: router.ask("GET", "/readiness").json()  # noqa: E731
        eventually("it is ready", ready, lambda seen: seen["healthy_workers"] == 4, 60)
        return router

    def upload(self, router, megabytes, chunked):
        """Sends a body; the status of the answer, or None if the router closed the connection before it had answered."""
        connection = self.outside.connect(router.machine.address, API, 120)
        length = "transfer-encoding: chunked" if chunked else f"content-length: {megabytes << 20}"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: smg\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
        piece = b"x" * (1 << 20)
        if chunked:
            piece = b"%x\r\n%s\r\n" % (len(piece), piece)
        with connection:
            try:
                connection.sendall(head.encode())
                for _ in range(megabytes):
                    connection.sendall(piece)
                if chunked:
                    connection.sendall(b"0\r\n\r\n")
            except OSError:
                pass
            try:
                answer = re.match(rb"HTTP/1.1 (\d+)", connection.recv(4096))
            except OSError:
                return None
            return int(answer[1]) if answer else None

    def chat(self, router, number):
        document = {"model": f"model-{number}", "messages": [{"role": "user", "content": "hello"}]}
        return request(self.outside, router.machine.address, "POST", "/v1/chat/completions", document, timeout=60).status

    def test_everything_at_once_in_256_mib(self):
        group = self.group()
        router = self.start(group)
        self.outside = self.network.machine("client")
        with concurrent.futures.ThreadPoolExecutor(16) as clients:
            uploads = [clients.submit(self.upload, router, 500, chunked) for chunked in (True, True, True, False)]
            uploads += [clients.submit(self.upload, router, 60, chunked) for chunked in (True, False, True, False)]
            pages = [
                clients.submit(request, self.outside, router.machine.address, "GET", "/engine_metrics", timeout=120)
                for _ in range(4)
            ]
            chats = [clients.submit(self.chat, router, number) for number in range(0, MODELS, 5)]
            for upload in uploads:
                self.assertIn(upload.result(), (None, 400, 413, 503))
            for page in pages:
                self.assertIn(page.result().status, (200, 503))
            answered = [chat.result() for chat in chats]
        # A request that finds no room beside the large bodies is refused; nothing else goes wrong.
        self.assertEqual(set(answered) - {200, 503}, set())
        self.assertTrue(router.is_running(), "it was not killed")
        self.assertEqual({self.chat(router, number) for number in range(1, 200)}, {200})
        metrics = router.ask("GET", "/metrics", timeout=20).body
        merged = request(self.outside, router.machine.address, "GET", "/engine_metrics", timeout=120).body
        self.assertGreater(group.peak(), 16 << 20, "the router is in the control group")
        print(
            f"\n    measured: peak {group.peak() >> 20} MiB of {LIMIT >> 20}, /metrics {len(metrics) >> 10} KiB, "
            f"/engine_metrics {len(merged) >> 20} MiB, {answered.count(200)} of {len(answered)} chats answered meanwhile",
            file=sys.stderr,
        )
        self.assertLess(len(metrics), 4 << 20)
        self.assertIn(b"worker_addr", merged)
        buffered = lambda: router.metrics()["smg_http_buffered_bytes"]  # noqa: E731
        eventually("all room is given back", buffered, lambda seen: seen == 0, 10)


if __name__ == "__main__":
    unittest.main()
