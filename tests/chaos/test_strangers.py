"""What strangers say on the mesh port: garbage, other protocols, far too much, nothing at all, and lies. D-15."""

import os
import random
import socket
import sys
import time
import unittest

import wire
from support import MESH, ChaosTest, always, eventually, report


class Strangers(ChaosTest):
    def setUp(self):
        super().setUp()
        self.routers = self.cluster(3)
        self.target = self.routers[0]
        self.stranger = self.network.machine("stranger")
        self.memory = self.target.memory()

    def dial(self):
        return self.stranger.connect(self.target.machine.address, MESH)

    def rejected(self, reason):
        return self.target.total("smg_mesh_rejected_total", reason=reason)

    def assert_counted(self, reason, before=0, within=6):
        eventually(f"{reason} is counted", lambda: self.rejected(reason), lambda count: count > before, within)

    def assert_unharmed(self, memory=64 << 20):
        """A counter moved, and nothing else."""
        for router in self.routers:
            self.assertTrue(router.is_running())
            self.assertEqual(router.states(), {name: "ALIVE" for name in ("node1", "node2", "node3")})
            self.assertEqual(router.health()["reasons"], [])
        self.assert_never(self.routers, "SUSPECTED")
        self.assertLess(self.target.memory() - self.memory, memory)
        self.assert_calm(self.routers)

    def introduced(self, call="Swim", name="stranger", cluster=None, **version):
        """A stream whose opening is as it should be, apart from what is asked for."""
        cluster = self.cluster_id() if cluster is None else cluster
        stream = wire.Stream(self.dial(), call)
        self.addCleanup(stream.close)
        address = f"{self.stranger.address}:{MESH}"
        stream.send(wire.of_opening(wire.opening(cluster, name, 1 << 40, address, **version)))
        return stream

    def cluster_id(self):
        tcp = self.dial()
        return wire.cluster_of(tcp)

    def test_d15_garbage_bytes(self):
        rng = random.Random(7)
        for _ in range(50):
            tcp = self.dial()
            try:
                tcp.sendall(rng.randbytes(rng.randrange(1, 4096)))
                tcp.shutdown(socket.SHUT_WR)
                while tcp.recv(4096):
                    pass
            except OSError:
                pass
            finally:
                tcp.close()
        self.assert_counted("not_http2")
        self.assert_unharmed()

    def test_d15_http_1(self):
        tcp = self.dial()
        tcp.sendall(b"GET /ha/status HTTP/1.1\r\nhost: node1:39527\r\n\r\n")
        answer = b""
        try:
            while more := tcp.recv(4096):
                answer += more
        except ConnectionError:
            pass
        tcp.close()
        self.assertNotIn(b"200 OK", answer)
        self.assert_counted("not_http2")
        self.assert_unharmed()

    def test_d15_message_of_64_megabytes(self):
        for call in ("Swim", "Sync"):
            before = self.rejected("message")
            stream = self.introduced(call)
            self.assertIsNotNone(stream.message())
            sent = stream.send(wire.of_frame(bytes(64 << 20)))
            self.assertTrue(stream.await_end())
            print(f"\n    measured: {call}: {sent} of 64 MiB were taken before the stream ended", file=sys.stderr)
            self.assertLess(sent, 8 << 20)
            self.assert_counted("message", before)
        # As the opening itself, of somebody who never introduces himself.
        stream = wire.Stream(self.dial(), "Swim")
        stream.send(bytes(64 << 20))
        self.assertTrue(stream.await_end())
        stream.close()
        self.assert_unharmed()

    def test_d15_a_length_that_never_comes(self):
        # Says that a megabyte comes, and sends a byte: a thousand times. Memory is for what was sent.
        streams = []
        for _ in range(200):
            stream = self.introduced("Sync")
            stream.send_raw(b"\x00\x00\x0f\xff\xff" + b"x")
            streams.append(stream)
        time.sleep(2)
        self.assert_unharmed()

    def test_d15_a_thousand_connections_that_say_nothing(self):
        held = []
        for _ in range(1000):
            held.append(self.dial())
            self.addCleanup(held[-1].close)
        time.sleep(2)
        self.assert_unharmed()
        # Another router still gets in.
        newcomer = self.router(self.network.machine("node4"), peers=[f"node1:{MESH}"])
        self.routers.append(newcomer)
        took = self.await_all_alive(self.routers, 5)
        report("join beside 1,000 silent connections", [took])
        # They are not kept for ever, or a stranger could keep others out.
        descriptors = lambda: len(os.listdir(f"/proc/{self.target.pid}/fd"))  # noqa: E731
        eventually("they are closed", descriptors, lambda count: count < 200, 10)
        # All but the last 128 were closed to make room for those behind them.
        self.assert_counted("strangers", 860)
        self.assert_counted("silent", 100)

    def test_d15_connections_that_only_say_hello(self):
        # HTTP/2 as it should be, and then nothing, not even answers to pings.
        for _ in range(200):
            tcp = self.dial()
            self.addCleanup(tcp.close)
            tcp.sendall(wire.PREFACE)
        descriptors = lambda: len(os.listdir(f"/proc/{self.target.pid}/fd"))  # noqa: E731
        eventually("they are closed", descriptors, lambda count: count < 150, 35)
        self.assert_unharmed()

    def test_d15_streams_that_do_not_introduce_themselves(self):
        streams = []
        for call in ("Swim", "Sync"):
            for _ in range(20):
                stream = wire.Stream(self.dial(), call)
                self.addCleanup(stream.close)
                streams.append(stream)
        for stream in streams:
            self.assertTrue(stream.await_end(10))
        self.assert_unharmed()

    def test_d15_other_versions(self):
        stream = self.introduced(major=99)
        self.assertTrue(stream.await_end())
        self.assert_counted("version")
        line = [record for record in self.target.records() if "version 99" in str(record)]
        self.assertEqual(len(line), 1)
        # A later minor version is welcome.
        stream = self.introduced(minor=7)
        self.assertIsNotNone(stream.message())
        self.assertFalse(stream.await_end(1))
        self.assert_unharmed()

    def test_d15_other_cluster(self):
        stream = self.introduced(cluster=4711)
        self.assertTrue(stream.await_end())
        self.assert_counted("cluster")
        self.assert_unharmed()

    def test_d15_nonsense_for_an_opening(self):
        for message in (b"", b"\xff" * 40, wire.of_frame(b"early"), wire.of_opening(b"\x08"), wire.of_opening(b"")):
            with self.subTest(message=message):
                stream = wire.Stream(self.dial(), "Swim")
                stream.send(message)
                self.assertTrue(stream.await_end())
                stream.close()
        address = f"{self.stranger.address}:{MESH}"
        for name, where in (("two words", address), ("n" * 300, address), ("stranger", "nowhere"), ("", address)):
            with self.subTest(name=name, where=where):
                stream = wire.Stream(self.dial(), "Swim")
                stream.send(wire.of_opening(wire.opening(self.cluster_id(), name, 1, where)))
                self.assertTrue(stream.await_end())
                stream.close()
        self.assert_counted("opening")
        self.assert_unharmed()

    def test_d15_frames_that_make_no_sense(self):
        cluster = self.cluster_id()
        good = wire.frame(wire.SWIM, cluster, b"no packet at all")
        flipped = good[:-1] + bytes([good[-1] ^ 1])
        frames = {
            "corrupted": flipped,
            "version": wire.frame(wire.SWIM, cluster, b"whatever", version=(9, 0)),
            "kind": wire.frame(200, cluster, b"whatever"),
            "packet": good,
            "cluster": wire.frame(wire.SWIM, cluster ^ 1, b"whatever"),
        }
        for call in ("Swim", "Sync"):
            stream = self.introduced(call)
            for reason, frame in frames.items():
                with self.subTest(reason=reason, call=call):
                    before = self.rejected(reason)
                    stream.send(wire.of_frame(frame))
                    self.assert_counted(reason, before)
        rng = random.Random(15)
        for kind in range(40):
            for _ in range(20):
                stream.send(wire.of_frame(wire.frame(kind, cluster, rng.randbytes(rng.randrange(1, 200)))))
        self.assertFalse(stream.await_end(0.5))
        time.sleep(2)
        self.assert_unharmed()


class Rumours(ChaosTest):
    """False reports about node3, sent to node1 in node2's name."""

    def setUp(self):
        super().setUp()
        self.routers = self.cluster(3)
        self.liar = self.network.machine("liar")

    def identity(self, name):
        node = self.routers[0].node(name)
        host, port = node["address"].rsplit(":", 1)
        return wire.Identity(name, int(node["generation"]), host, int(port))

    def lie(self, state, incarnation=0):
        """Sends the false report. Returns the wall-clock time of that."""
        node1 = self.routers[0].machine.address
        cluster = wire.cluster_of(self.liar.connect(node1, MESH))
        node2, about = self.identity("node2"), self.identity("node3")
        stream = wire.Stream(self.liar.connect(node1, MESH), "Swim")
        self.addCleanup(stream.close)
        stream.send(wire.of_opening(wire.opening(cluster, node2.name, node2.generation, f"{node2.address}:{node2.port}")))
        self.assertIsNotNone(stream.message())
        packet = wire.rumour(node2, self.identity("node1"), about, state, incarnation)
        sent = time.time()
        stream.send(wire.of_frame(wire.frame(wire.SWIM, cluster, packet)))
        return sent

    def refuted(self, sent, name):
        """Waits until node1 has applied the report and its refutation. Returns the seconds between the two."""
        self.await_transition(self.routers[0], "node3", name, sent, 2)
        took = self.await_transition(self.routers[0], "node3", "ALIVE", sent, 5)
        self.await_all_alive(self.routers, 2)
        return took

    def assert_all_is_as_before(self, generation):
        for router in self.routers:
            always("all stay ALIVE", router.states, lambda seen: set(seen.values()) == {"ALIVE"}, 2)
            self.assertEqual(router.node("node3")["generation"], generation)
        self.assert_calm(self.routers)

    def test_false_suspicion_is_refuted(self):
        generation = self.routers[0].node("node3")["generation"]
        # node3 raises its incarnation each time, so the next false report needs a higher one to be applied.
        took = [self.refuted(self.lie(wire.SUSPECT, 10 * number), "SUSPECTED") for number in range(5)]
        report("false SUSPECTED sent to refuted", took)
        self.assertLess(max(took), 2)
        self.assert_never(self.routers, "DOWN")
        self.assert_all_is_as_before(generation)

    def test_false_death_is_refuted(self):
        generation = self.routers[0].node("node3")["generation"]
        took = self.refuted(self.lie(wire.DOWN), "DOWN")
        report("false DOWN sent to refuted", [took])
        self.assertLess(took, 2)
        refuted = lambda: self.routers[2].metrics()["smg_mesh_refutations_total"]  # noqa: E731
        eventually("it is counted", refuted, lambda count: count >= 1, 3)
        self.assert_all_is_as_before(generation)


if __name__ == "__main__":
    unittest.main()
