"""Routers that go on purpose: D-10, and the promise that nobody takes them for dead."""

import http.client
import signal
import threading
import time
import unittest

from load import QUESTION, Balancer, Clients, StreamReader
from support import ChaosTest, eventually, report, request


class Leave(ChaosTest):
    def leave_by_signal(self, router):
        router.signal(signal.SIGTERM)

    def leave_by_request(self, router):
        self.assertEqual(router.ask("POST", "/ha/shutdown").status, 202)

    def leave_idle(self, leave):
        """A router without work goes: everybody knows at once, and nobody calls it dead."""
        routers = self.cluster(3)
        asked = time.time()
        leave(routers[1])
        self.assertEqual(routers[1].wait(10), 0)
        others = [routers[0], routers[2]]
        known = []
        for router in others:
            gone = lambda seen: sorted(seen) == ["node1", "node3"]  # noqa: E731
            eventually(f"{router.machine} does not list it any more", router.states, gone, 5)
            steps = [(at - asked, to) for at, _, _, to in router.transitions("node2") if at >= asked]
            # From the inside, so that what the test needs to look is not in the number.
            self.assertEqual([to for _, to in steps], ["LEAVING", "GONE"], steps)
            known.append(steps[0][0])
        report("graceful leave known to the others", known)
        self.assertLess(max(known), 0.5)
        for router in others:
            self.assertFalse([name for name in router.metrics() if name.startswith("smg_mesh_peer_status") and "node2" in name])
            self.assertEqual(router.metrics()["smg_mesh_peers_total"], 1)
            self.assertEqual(router.health()["reasons"], [])
        # Longer than it takes to call somebody dead.
        time.sleep(8)
        self.assert_never(others, "DOWN")
        self.assert_never(others, "SUSPECTED")
        # Its name is free, and it is welcome.
        routers[1] = self.router(routers[1].machine)
        self.await_all_alive(routers, 2)
        self.assert_calm(routers)

    def test_d10_sigterm(self):
        self.leave_idle(self.leave_by_signal)

    def test_d10_post_shutdown(self):
        self.leave_idle(self.leave_by_request)

    def leave_under_load(self, leave):
        urls = self.workers(2, "--decode-tokens-per-second", "20")
        # Five seconds in which a balancer can notice, as by default.
        routers = self.cluster(3, "--worker-urls", ",".join(urls), "--drain-settle-secs", "5")
        somebody = self.network.machine("somebody")
        for router in routers:
            eventually("ready", lambda r=router: r.ask("GET", "/readiness").status, lambda status: status == 200, 10)
        balancer = Balancer(somebody, routers)
        clients = Clients(somebody, routers, rate=50, retries=0, ready=balancer.is_ready)
        streams = [StreamReader(somebody, routers[1], 200) for _ in range(10)]
        eventually("all streams have begun", lambda: [bool(stream.text) for stream in streams], all, 5)
        asked = time.time()
        leave(routers[1])
        unready = eventually("it is not ready any more", lambda: routers[1].ask("GET", "/readiness").status, lambda seen: seen == 503, 5)
        report("leave to readiness 503", [unready])
        self.assertLess(unready, 0.25)
        self.assertEqual(routers[1].ask("GET", "/liveness").status, 200)
        # It says so before it does anything, and stays listed while it works.
        for router in (routers[0], routers[2]):
            self.assertLess(self.await_transition(router, "node2", "LEAVING", asked, 5), 0.5)
            self.assertEqual(router.states()["node2"], "LEAVING")
        while time.time() < asked + 4:
            self.assertEqual(request(somebody, routers[1].machine.address, "GET", "/liveness").status, 200)
            time.sleep(0.2)
        self.assertEqual({stream.end(30) for stream in streams}, {"whole"})
        self.assertEqual(routers[1].wait(20), 0)
        took = time.time() - asked
        report("leave with ten streams of ten seconds to exit", [took])
        self.assertLess(took, 10 + 10)
        time.sleep(1)
        clients.stop()
        balancer.stop()
        self.assertEqual(clients.failures, [])
        self.assertGreater(clients.answered, 100)
        others = [routers[0], routers[2]]
        self.assert_never(others, "DOWN")
        self.assert_calm(others)

    def test_d10_sigterm_under_load(self):
        self.leave_under_load(self.leave_by_signal)

    def test_d10_post_shutdown_under_load(self):
        self.leave_under_load(self.leave_by_request)

    def test_d10_a_second_sigterm_forces(self):
        urls = self.workers(1, "--decode-tokens-per-second", "1")
        routers = self.cluster(2, "--worker-urls", urls[0])
        eventually("ready", lambda: routers[1].ask("GET", "/readiness").status, lambda status: status == 200, 10)
        stream = StreamReader(routers[0].machine, routers[1], 1000)
        eventually("it has begun", lambda: stream.text, bool, 10)
        routers[1].signal(signal.SIGTERM)
        time.sleep(1)
        self.assertTrue(routers[1].is_running())
        routers[1].signal(signal.SIGTERM)
        self.assertNotEqual(routers[1].wait(5), 0)
        self.assertEqual(stream.end(5), "cut")

    def test_shutdown_is_for_loopback(self):
        # Without an admin key only its own machine ends a router, although --admin-open takes other writes from everywhere.
        routers = self.cluster(2)
        answer = request(routers[0].machine, routers[1].machine.address, "POST", "/ha/shutdown")
        self.assertIn(answer.status, (401, 403))
        time.sleep(0.5)
        self.assertTrue(routers[1].is_running())

    def test_rolling_restart(self):
        urls = self.workers()
        routers = self.cluster(3, "--worker-urls", ",".join(urls), "--drain-settle-secs", "2")
        somebody = self.network.machine("somebody")
        for router in routers:
            eventually("ready", lambda r=router: r.ask("GET", "/readiness").status, lambda status: status == 200, 10)
        current = {router.machine.name: router for router in routers}
        balancer = Rolling(somebody, current)
        time.sleep(1)
        for name in list(current):
            self.leave_by_signal(current[name])
            self.assertEqual(current[name].wait(20), 0)
            flags = ["--worker-urls", ",".join(urls), "--drain-settle-secs", "2"]
            current[name] = self.router(current[name].machine, *flags)
            eventually("ready", lambda: current[name].ask("GET", "/readiness").status, lambda status: status == 200, 10)
            self.await_all_alive(list(current.values()), 5)
            time.sleep(1.5)
        balancer.stop()
        self.assertEqual(balancer.failures, [])
        self.assertGreater(balancer.answered, 200)
        self.assert_never(list(current.values()), "DOWN")
        self.assert_calm(list(current.values()))


class Rolling:
    """A client behind a balancer, while routers are exchanged: it uses the routers that were ready half a second ago."""

    def __init__(self, machine, current):
        self.answered = 0
        self.failures = []
        self._machine = machine
        self._current = current
        self._ready = dict.fromkeys(current, True)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._watch, self._ask, self._ask)]
        for thread in self._threads:
            thread.start()

    def _watch(self):
        while not self._stop.wait(0.3):
            for name, router in list(self._current.items()):
                try:
                    self._ready[name] = request(self._machine, router.machine.address, "GET", "/readiness", timeout=1).status == 200
                except (OSError, http.client.HTTPException):
                    self._ready[name] = False

    def _ask(self):
        turn = 0
        while not self._stop.wait(0.02):
            turn += 1
            ready = [name for name, is_ready in self._ready.items() if is_ready]
            if not ready:
                self.failures.append("nobody is ready")
                continue
            address = self._current[ready[turn % len(ready)]].machine.address
            try:
                answer = request(self._machine, address, "POST", "/v1/chat/completions", QUESTION, timeout=5)
                if answer.status != 200:
                    self.failures.append((time.time(), address, answer.status, answer.body[:200]))
                else:
                    self.answered += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((time.time(), address, repr(error)))

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)


if __name__ == "__main__":
    unittest.main()
