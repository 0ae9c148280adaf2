"""The shared key: what the wire shows with it and without it, and its rotation while everything goes on. D-19."""

import itertools
import socket
import sys
import threading
import time
import unittest

from load import Clients
from support import MESH, ChaosTest, eventually, inside, report

# 32 bytes each, in base64.
KEYS = ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="]

ETH_P_ALL = 3


class Capture:
    """All that goes over the mesh ports of a machine, as somebody on the wire reads it."""

    def __init__(self, machine):
        with inside(machine.namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self.packets = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set():
            try:
                packet = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            payload = mesh_payload(packet)
            if payload:
                self.packets.append(payload)

    def stop(self):
        """Ends it; all that was seen."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._socket.close()
        return b"".join(self.packets)


def mesh_payload(packet):
    """What a TCP packet from or to the mesh port carries; nothing for any other packet."""
    if len(packet) < 34 or packet[12:14] != b"\x08\x00" or packet[23] != socket.IPPROTO_TCP:
        return b""
    tcp = 14 + (packet[14] & 15) * 4
    end = 14 + int.from_bytes(packet[16:18], "big")
    ports = int.from_bytes(packet[tcp : tcp + 2], "big"), int.from_bytes(packet[tcp + 2 : tcp + 4], "big")
    return packet[tcp + (packet[tcp + 12] >> 4) * 4 : end] if MESH in ports else b""


class Keys(ChaosTest):
    def worker(self, routers, url):
        """A worker that all routers know; its path."""
        added = routers[0].ask("POST", "/workers?wait=all", {"url": url})
        self.assertEqual(added.status, 202, added.body)
        return "/workers/" + added.json()["id"]

    def test_d19_without_a_key_the_wire_shows_everything(self):
        # What the next test does not find can be found.
        url = self.workers(1)[0]
        routers = self.cluster(3)
        capture = Capture(routers[1].machine)
        self.worker(routers, url)
        self.assertIn(url.encode(), capture.stop())

    def test_d19_rotation_under_load(self):
        urls = self.workers()
        routers = self.cluster(3, SMG_MESH_ENCRYPTION_KEY=KEYS[0])
        capture = Capture(routers[1].machine)
        paths = [self.worker(routers, url) for url in urls]
        for router in routers:
            serving = lambda seen: seen.status == 200 and seen.json()["healthy_workers"] == len(urls)  # noqa: E731
            eventually("ready", lambda r=router: r.ask("GET", "/readiness"), serving, 10)
        failed = sum(router.metrics()["smg_mesh_failed_probes_total"] for router in routers)
        clients = Clients(self.network.machine("somebody"), routers, retries=0)
        written, confirmed = itertools.count(1), []

        def write(seconds):
            """Changes that all three confirm, one after the other: none may be lost."""
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                number = next(written)
                router, began = routers[number % 3], time.monotonic()
                answer = router.ask("PATCH", f"{paths[number % 2]}?wait=all&timeout=2s", {"priority": number})
                confirmed.append(time.monotonic() - began)
                self.assertEqual((answer.status, answer.json()["receipt"]["complete"]), (200, True), answer.body)

        old = routers[0].get("/ha/keys")["in_use"]
        write(1)
        new = self.changed(routers[1].ask("POST", "/ha/keys", {"key": KEYS[1]}))["id"]
        write(1)
        self.changed(routers[2].ask("PUT", f"/ha/keys/{new}"))
        write(1)
        self.changed(routers[0].ask("DELETE", f"/ha/keys/{old}"))
        write(2)
        # Connections that are made anew use the new one too.
        self.assert_never(routers, "SUSPECTED")
        failed = sum(router.metrics()["smg_mesh_failed_probes_total"] for router in routers) - failed
        routers[0].machine.cut_from(*(router.machine for router in routers[1:]))
        time.sleep(6)
        routers[0].machine.heal()
        self.await_all_alive(routers, 10)
        write(2)
        clients.stop()
        wire = capture.stop()
        report("a change confirmed by all while keys rotate", [time * 1000 for time in confirmed], "ms")
        print(f"    {len(confirmed)} changes, {clients.answered} requests, {len(wire)} bytes on the wire", file=sys.stderr)
        self.assertEqual(clients.failures, [])
        self.assertGreater(clients.answered, 300)
        self.assertGreater(len(wire), 10_000)
        for url in urls:
            self.assertNotIn(url.removeprefix("http://").encode(), wire)
        for router in routers:
            self.assertEqual(router.get("/ha/keys")["keys"], [new])
        self.assertEqual(failed, 0, "probes that failed while keys rotated")
        self.await_equal_digests(routers, 10)

    def changed(self, answer):
        """A change of keys that all three took."""
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(len(answer.json()["nodes"]), 3, answer.body)
        return answer.json()


if __name__ == "__main__":
    unittest.main()
