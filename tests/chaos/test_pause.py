"""Processes that stand still, clocks that are wrong, machines that are overloaded. D-09, D-18, D-41."""

import contextlib
import pathlib
import re
import shutil
import subprocess
import sys
import time
import unittest

from support import API, LONG, ChaosTest, always, eventually, quantile, report


class Pause(ChaosTest):
    def test_one_of_five_stands_still(self):
        routers = self.cluster(5)
        frozen, others = routers[4], routers[:4]
        generation = frozen.node("node5")["generation"]
        stopped = time.time()
        frozen.freeze()
        self.addCleanup(frozen.thaw)
        for router in others:
            self.await_transition(router, "node5", "DOWN", stopped, 10)
        together = lambda seen: all(seen[f"node{number}"] == "ALIVE" for number in range(1, 5))  # noqa: E731
        left = (stopped + 20 - time.time()) / len(others)
        for router in others:
            always(f"{router.machine} lists the others as ALIVE", router.states, together, left)
        woken = time.time()
        frozen.thaw()
        took = self.await_all_alive(routers, 10)
        report("standstill of 20 s ended to all ALIVE", [took])
        time.sleep(8)
        # What it took for the silence of the others was its own.
        self.await_all_alive(routers, 1)
        self.assert_never(others, "SUSPECTED", but=["node5"])
        self.assert_never(routers, "DOWN", since=woken)
        for router in routers:
            self.assertEqual(router.node("node5")["generation"], generation)
        self.assertNotIn("as another writer", frozen.log())
        self.assertGreaterEqual(frozen.metrics()["smg_mesh_stalls_total"], 1)
        self.await_equal_digests(routers, 10)
        self.assert_calm(routers)

    def test_short_standstill_is_forgiven(self):
        # Shorter than the suspicion lasts: it may be suspected, and refutes.
        routers = self.cluster(3)
        for _ in range(5):
            routers[1].freeze()
            time.sleep(2)
            routers[1].thaw()
            self.await_all_alive(routers, 3)
            time.sleep(1)
        self.assert_never(routers, "DOWN")

    def test_d09_flapping(self):
        routers = self.cluster(3)
        flaps = 20 if LONG else 6
        flapping, others = routers[1], (routers[0], routers[2])
        generation = flapping.node("node2")["generation"]
        for _ in range(flaps):
            flapping.freeze()
            time.sleep(3)
            flapping.thaw()
            time.sleep(3)
        self.await_all_alive(routers, 5)
        for router in others:
            steps = [to for _, _, _, to in router.transitions("node2")][2:]
            print(f"\n    measured: {flaps} flaps, {router.machine} saw {len(steps)} transitions", file=sys.stderr)
            self.assertLessEqual(len(steps), 2 * flaps)
            self.assertEqual(router.node("node2")["generation"], generation)
        # The one who flaps accuses nobody.
        for name in ("node1", "node3"):
            self.assertEqual([step for step in flapping.transitions(name) if step[3] == "DOWN"], [])
        for router in others:
            self.assertEqual(set(router.states().values()), {"ALIVE"})
        self.assert_calm(routers)


class WrongClock(ChaosTest):
    def library(self):
        if not shutil.which("cc"):
            print(f"\n!!! SKIPPED: {self.id()}: needs cc, for clocks that are wrong", file=sys.stderr)
            self.skipTest("needs cc")
        built = pathlib.Path(self.network.directory) / "clock.so"
        source = pathlib.Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", built, source], check=True, timeout=60)
        return str(built)

    def test_d18_clock_skew(self):
        machines = self.machines(3)
        ahead = pathlib.Path(self.network.directory) / "ahead"
        ahead.write_text("300000\n")
        wrong = self.router(machines[1], LD_PRELOAD=self.library(), CHAOS_CLOCK=str(ahead))
        routers = [self.router(machines[0]), wrong, self.router(machines[2])]
        self.await_all_alive(routers, 5)
        logged = next(wrong.records())["timestamp"]
        self.assertGreater(logged, next(routers[0].records())["timestamp"], "the clock is wrong indeed")
        self.assert_skew(routers, 300)
        # Steps while it runs: right, behind, far behind.
        for milliseconds in (0, -300_000, -86_400_000):
            ahead.write_text(f"{milliseconds}\n")
            self.assert_skew(routers, milliseconds / 1000)
        # Restarted with a clock that is behind its former life's: it is a later life all the same.
        generation = routers[0].node("node2")["generation"]
        ahead.write_text("-300000\n")
        wrong.kill()
        wrong = self.router(machines[1], LD_PRELOAD=self.library(), CHAOS_CLOCK=str(ahead))
        routers[1] = wrong
        is_new = lambda seen: seen and int(seen["generation"]) > int(generation) and seen["status"] == "ALIVE"  # noqa: E731
        for router in routers:
            eventually("it is back as a later life", lambda r=router: r.node("node2"), is_new, 5)
        self.await_all_alive(routers, 5)
        time.sleep(5)
        # Dates have nothing to do with who is there.
        for router in (routers[0], routers[2]):
            self.assertEqual([step for step in router.transitions() if step[3] == "DOWN"], [])
        self.await_equal_digests(routers, 10)
        self.assert_calm(routers)

    def test_writes_take_effect_although_one_clock_of_three_is_wrong(self):
        self.write_with_a_wrong_clock(3)

    def test_writes_take_effect_although_one_clock_of_two_is_wrong(self):
        self.write_with_a_wrong_clock(2)

    def write_with_a_wrong_clock(self, count):
        machines = self.machines(count)
        ahead = pathlib.Path(self.network.directory) / "ahead"
        ahead.write_text("0\n")
        routers = [self.router(machine) for machine in machines[:-1]]
        wrong = self.router(machines[-1], LD_PRELOAD=self.library(), CHAOS_CLOCK=str(ahead))
        routers.append(wrong)
        self.await_all_alive(routers, 10)
        # Each step happens while the routers run, and the first write follows before any router can have noticed it.
        for seconds in (-61, 61, -3600, 3600, -86_400, 86_400, 0):
            ahead.write_text(f"{seconds * 1000}\n")
            for writer in (wrong, routers[0], wrong):
                self.assert_writes_take_effect(routers, writer, f"clock off by {seconds} s, written at {writer}")

    def assert_writes_take_effect(self, routers, writer, situation):
        url = f"http://{writer.machine.address}:9"
        added = writer.ask("POST", "/workers?wait=all", {"url": url})
        self.assertEqual((added.status, added.json()["receipt"]["not_applied"]), (202, []), situation)
        worker = added.json()["worker_id"]
        for healthy in (True, False):
            # It ends in an hour of the cluster's time, not of the writer's.
            document = {"healthy": healthy, "reason": "test", "ttl_secs": 3600}
            answer = writer.ask("POST", f"/workers/{worker}/override?wait=all", document)
            self.assertEqual(answer.status, 200, f"{situation}: {answer.body}")
            for router in routers:
                seen = router.get(f"/ha/workers/{worker}")
                self.assertEqual(seen["override"], healthy, f"{situation}, read from {router}")
        removed = writer.ask("DELETE", f"/workers/{worker}?wait=all")
        self.assertIn(removed.status, (200, 202), f"{situation}: {removed.body}")
        for router in routers:
            self.assertEqual(router.ask("GET", f"/workers/{worker}").status, 404, f"{situation}, read from {router}")

    def assert_skew(self, routers, seconds):
        series = 'smg_mesh_clock_skew_seconds{peer="node2"}'
        near = lambda seen: abs(seen.get(series, 1e9) - seconds) < 0.1  # noqa: E731
        for router in (routers[0], routers[2]):
            took = eventually(f"{router.machine} measures {seconds} s", router.metrics, near, 15)
            print(f"\n    measured: {router.machine} knew a skew of {seconds} s after {took:.1f} s", file=sys.stderr)
        self.assertEqual(set(routers[0].states().values()), {"ALIVE"})


class Overload(ChaosTest):
    def test_d41_overload(self):
        urls = self.workers(2)
        routers = self.cluster(3, "--worker-urls", ",".join(urls))
        somebody = self.network.machine("somebody")
        for router in routers:
            eventually("ready", lambda r=router: r.ask("GET", "/readiness").status, lambda status: status == 200, 10)
        seconds = 300 if LONG else 30
        with self.flood(somebody, routers[0], seconds) as flood:
            rtts, probes = [], []
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                for router in routers:
                    began = time.monotonic()
                    seen = router.metrics()
                    probes.append(time.monotonic() - began)
                    rtts += [value for name, value in seen.items() if name.startswith("smg_mesh_probe_rtt_seconds")]
                time.sleep(0.3)
        report("probe RTT while router 1 is saturated", [rtt * 1000 for rtt in rtts], "ms")
        report("GET /metrics meanwhile", [probe * 1000 for probe in probes], "ms")
        print(f"\n    measured: {flood()} requests/s at router 1", file=sys.stderr)
        self.assert_never(routers, "SUSPECTED")
        self.assertLessEqual(quantile(rtts, 0.99), 0.25)
        self.assert_calm(routers)

    @contextlib.contextmanager
    def flood(self, machine, router, seconds):
        """All the requests that this machine can make, at one router; yields how to ask afterwards for their rate."""
        url = f"http://{router.machine.address}:{API}/v1/chat/completions"
        if not shutil.which("wrk"):
            print(f"\n!!! SKIPPED: {self.id()}: needs wrk", file=sys.stderr)
            self.skipTest("needs wrk")
        script = pathlib.Path(self.network.directory) / "ask.lua"
        script.write_text(
            'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\n'
            """wrk.body = '{"model":"mock-model","max_tokens":2,"messages":[{"role":"user","content":"hello"}]}'\n"""
        )
        words = ["wrk", "-t2", "-c256", f"-d{seconds}s", "-s", str(script), url]
        wrk = subprocess.Popen(["ip", "netns", "exec", machine.namespace, *words], stdout=subprocess.PIPE, text=True)
        self.addCleanup(wrk.stdout.close)
        self.addCleanup(wrk.kill)
        output = []
        yield lambda: float(re.search(r"Requests/sec:\s+([\d.]+)", output[0])[1])
        output.append(wrk.communicate(timeout=60)[0])


if __name__ == "__main__":
    unittest.main()
