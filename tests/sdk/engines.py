"""Two llama-servers behind one router, for tests of a real engine.

SMG_ENGINE is the command that starts a llama-server (`llama-server`, or one behind `chroot DIR`), SMG_ENGINE_MODEL
the model's path as that command sees it.
"""

import os
import shlex
import socket
import unittest
import urllib.error
import urllib.request

from support import Process, Router, eventually


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_engine(port, flags):
    own = ["--host", "127.0.0.1", "--port", str(port), "-t", "1"]
    model = ["-m", os.environ["SMG_ENGINE_MODEL"], "--alias", "tiny", "--no-webui"]
    return Process([*shlex.split(os.environ["SMG_ENGINE"]), *model, *own, *flags])


def is_up(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@unittest.skipUnless("SMG_ENGINE" in os.environ, "SMG_ENGINE names no llama-server")
class TwoEngines(unittest.TestCase):
    """A test with two fresh engines: a warm cache proves nothing."""

    # Context, slots and chat template.
    FLAGS = ("-c", "49152", "-np", "12", "--chat-template", "chatml")

    def setUp(self):
        self.urls = []
        for _ in range(2):
            port = free_port()
            self.addCleanup(start_engine(port, self.FLAGS).stop)
            self.urls.append(f"http://127.0.0.1:{port}")
        for url in self.urls:
            eventually(lambda url=url: is_up(url), f"{url} is up")

    def start_router(self, *flags):
        router = Router(self.urls, "--debug-headers", *flags)
        self.addCleanup(router.stop)
        return router
