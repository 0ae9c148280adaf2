"""The data folder: what all routers keep when all are killed at once, and what a broken disk costs. D-24, D-27."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from load import QUESTION, Clients
from support import ChaosTest, binary, environment, eventually, report, request, sh

# 32 bytes each, in base64.
KEYS = ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="]
LIMIT = {"requests": 1_000_000, "window": "1h", "match": {"model": "other"}}


def worker_id(answer):
    return answer.json()["id"]


class DiskTest(ChaosTest):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.network.id}-data-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def tmpfs(self, size="1m"):
        """A file system of its own at the folder."""
        try:
            sh("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.folder))
        except OSError as error:
            print(f"\n!!! SKIPPED: {self.id()}: no tmpfs can be mounted here: {error}", file=sys.stderr)
            self.skipTest(str(error))
        self.addCleanup(sh, "umount", "-l", str(self.folder), check=False)

    def start(self, machine, *flags, **variables):
        return self.router(machine, "--data-dir", str(self.folder / machine.name), *flags, **variables)

    def alone(self, machine):
        """A router without others, once it listens."""
        router = self.start(machine, peers=[])
        eventually(f"{machine} listens", router.status, bool, 10)
        return router

    def priorities(self, router):
        return [worker["priority"] for worker in router.get("/workers")["workers"]]

    def durability(self, router):
        return router.health()["durability"]

    def await_durability(self, router, state, within):
        what = f"{router.machine} says that its durability is {state}"
        return eventually(what, lambda: self.durability(router), lambda seen: seen["state"] == state, within)


class AllDie(DiskTest):
    def facts(self, router):
        """What administrators have set, as a router shows it."""
        workers = {
            worker["url"]: (worker["priority"], worker["override"])
            for worker in router.get("/workers")["workers"]
        }
        policies = {model: entry["policy"] for model, entry in router.get("/ha/policies")["set"].items()}
        limits = {rule["id"]: rule["requests"] for rule in router.get("/ha/rate-limits")["rules"]}
        return {"workers": workers, "policies": policies, "limits": limits, "keys": router.get("/ha/keys")["keys"]}

    def set_up_all(self, routers, urls):
        """One of each kind of change, each confirmed by all."""
        ask = lambda *words: self.confirmed(routers[0].ask(*words))  # noqa: E731
        ids = {url: worker_id(ask("POST", "/workers?wait=all", {"url": url})) for url in urls[1:]}
        listed = {worker["url"]: worker["id"] for worker in routers[0].get("/ha/workers")["workers"]}
        ask("DELETE", f"/workers/{listed[urls[0]]}?wait=all")
        ask("PATCH", f"/workers/{ids[urls[1]]}?wait=all", {"priority": 7})
        ask("POST", f"/workers/{ids[urls[2]]}/override?wait=all", {"healthy": False, "reason": "maintenance"})
        ask("PUT", "/ha/policies/mock-model?wait=all", {"policy": "round_robin"})
        ask("PUT", "/ha/rate-limits/few?wait=all", LIMIT)
        new = ask("POST", "/ha/keys", {"key": KEYS[1]}).json()["id"]
        old = routers[0].get("/ha/keys")["in_use"]
        ask("PUT", f"/ha/keys/{new}")
        ask("DELETE", f"/ha/keys/{old}")

    def confirmed(self, answer):
        self.assertIn(answer.status, (200, 201, 202), answer.body)
        return answer

    def first_answer(self, router):
        """Until a request is answered by a worker; seconds since the router's process began."""
        ask = lambda: request(router.machine, "127.0.0.1", "POST", "/v1/chat/completions", QUESTION, timeout=3)  # noqa: E731
        eventually(f"{router.machine} serves", ask, lambda answer: answer.status == 200, 10)
        return time.time() - router.started

    def test_d24_all_are_killed_under_load_and_any_one_goes_on_alone(self):
        urls = self.workers(3)
        flags = ["--worker-urls", urls[0], "--min-ready-workers", "0"]
        machines = self.machines(3)
        start = lambda machine: self.start(machine, *flags, SMG_MESH_ENCRYPTION_KEY=KEYS[0])  # noqa: E731
        routers = [start(machine) for machine in machines]
        self.await_all_alive(routers, 10)
        eventually("all know the worker", lambda: routers[2].get("/ha/workers")["workers"], lambda seen: len(seen) == 1, 10)
        self.set_up_all(routers, urls)
        expected = self.facts(routers[0])
        self.assertEqual(set(expected["workers"]), set(urls[1:]))
        clients = Clients(self.network.machine("somebody"), routers)
        eventually("clients are served", lambda: clients.answered, lambda seen: seen > 50, 10)
        # What was confirmed is on disk within 50 ms; the answers above took longer.
        for router in routers:
            router.signal(signal.SIGKILL)
        for router in routers:
            router.wait(10)
        clients.stop()

        served = []
        for machine in machines:
            router = start(machine)
            served.append(self.first_answer(router))
            self.assertEqual(self.facts(router), expected, f"{machine} alone")
            # Without the folder it would wait for --mesh-join-timeout.
            ready = lambda r=router: r.ask("GET", "/readiness").status  # noqa: E731
            eventually(f"{machine} is ready", ready, lambda status: status == 200, 5)
            router.kill()
        report("first answer of a router that starts alone after all were killed", served)
        self.assertLess(max(served), 3)

        routers = [start(machine) for machine in machines]
        self.await_all_alive(routers, 15)
        self.await_equal_digests(routers, 20)
        for router in routers:
            self.assertEqual(self.facts(router), expected, f"{router.machine} with the others")
        # The configured worker that was removed stays removed when all have announced their configurations.
        added = self.confirmed(routers[1].ask("PATCH", self.path_of(routers[1], urls[1]), {"priority": 8}, timeout=20))
        self.assertTrue(added.json()["receipt"]["complete"])
        self.assertNotIn(urls[0], self.facts(routers[2])["workers"])
        self.assert_calm(routers)

    def path_of(self, router, url):
        ids = {worker["url"]: worker["id"] for worker in router.get("/ha/workers")["workers"]}
        return f"/workers/{ids[url]}?wait=all"

    def test_d24_a_damaged_log_never_stops_a_start(self):
        urls = self.workers(1)
        machine = self.machines(1)[0]
        folder = self.folder / machine.name
        router = self.alone(machine)
        path = f"/workers/{worker_id(self.confirmed(router.ask('POST', '/workers', {'url': urls[0]}, timeout=20)))}"
        chance = random.Random(27)
        highest = 0
        for trial in range(4):
            for priority in range(highest + 1, highest + 9):
                self.confirmed(router.ask("PATCH", path, {"priority": priority}, timeout=20))
                time.sleep(0.06)  # one batch for each
            highest = priority
            router.kill()
            log = max(folder.glob("log-*"))
            data = bytearray(log.read_bytes())
            at = chance.randrange(60, len(data))
            if trial % 2:
                data[at] ^= 1 << chance.randrange(8)
            else:
                del data[at:]
            log.write_bytes(data)
            router = self.alone(machine)
            self.first_answer(router)
            found = self.priorities(router)
            self.assertEqual(len(found), 1)
            self.assertLessEqual(found[0] or 0, highest, "it never invents")
            self.assertIn("torn or damaged", router.log()) if trial % 2 else None
        self.assert_calm([router])


class BrokenDisk(DiskTest):
    def serving(self):
        """A router with its folder on a file system of its own, a worker, and clients that count every failure."""
        self.tmpfs()
        urls = self.workers(1)
        machine = self.machines(1)[0]
        router = self.alone(machine)
        added = router.ask("POST", "/workers", {"url": urls[0]}, timeout=20)
        self.assertEqual(added.status, 202, added.body)
        self.path = f"/workers/{worker_id(added)}"
        ready = lambda seen: seen.status == 200 and seen.json()["healthy_workers"] == 1  # noqa: E731
        eventually("ready", lambda: router.ask("GET", "/readiness"), ready, 10)
        self.await_durability(router, "ok", 5)
        return router, Clients(self.network.machine("somebody"), [router], rate=300, retries=0)

    def change(self, router, priority):
        answer = router.ask("PATCH", self.path, {"priority": priority})
        self.assertEqual(answer.status, 200, answer.body)

    def test_d27_a_full_disk_and_a_removed_folder_cost_no_request(self):
        router, clients = self.serving()
        folder = self.folder / router.machine.name
        taken = []

        def fill():
            with contextlib.suppress(OSError), open(self.folder / "fill", "wb", buffering=0) as file:
                while file.write(b"x" * 4096):
                    pass

        faults = [
            ("full", fill, lambda: os.unlink(self.folder / "fill")),
            ("removed", lambda: shutil.rmtree(folder), lambda: None),
        ]
        for number, (name, begin, end) in enumerate(faults, 1):
            begin()
            self.change(router, number)
            noticed = lambda: "degraded" in [self.durability(router)["state"]] or self.has_recovered(router, number)  # noqa: E731
            taken.append(eventually(f"{name}: it is noticed", noticed, bool, 5))
            end()
            recovered = self.await_durability(router, "ok", 60)
            print(f"    {name}: noticed after {taken[-1]:.1f} s, recovered {recovered:.1f} s after its end", file=sys.stderr)
            eventually("the recovery is logged", router.log, lambda log: log.count("the data folder works again") == number, 5)
        metrics = router.metrics()
        self.assertEqual(metrics["smg_persist_degraded"], 0)
        self.assertGreaterEqual(metrics["smg_persist_errors_total"], 2)
        clients.stop()
        self.assertEqual(clients.failures, [])
        self.assertGreater(clients.answered, 200)
        router.kill()
        again = self.alone(router.machine)
        eventually("nothing was lost", lambda: self.priorities(again), lambda seen: seen == [len(faults)], 10)
        self.assert_calm([again])

    def has_recovered(self, router, number):
        """A folder that was removed may be there again before anybody asks."""
        return router.log().count("the data folder works again") == number

    def test_d27_a_disk_that_can_only_be_read_is_read_and_written_again_later(self):
        router, clients = self.serving()
        self.change(router, 5)
        clients.stop()
        self.assertEqual(clients.failures, [])
        router.signal(signal.SIGTERM)
        router.wait(10)
        sh("mount", "-o", "remount,ro", str(self.folder))
        router = self.alone(router.machine)
        read = lambda: self.priorities(router)  # noqa: E731
        eventually("it has its state", read, lambda seen: seen == [5], 10)
        self.await_durability(router, "degraded", 5)
        self.assertIn("data folder", " ".join(router.health()["reasons"]))
        self.assertEqual(router.metrics()["smg_persist_degraded"], 1)
        self.change(router, 6)
        # The router has mounts of its own, as each process of these tests.
        for place in ([], ["nsenter", "-t", str(router.pid), "-m"]):
            sh(*place, "mount", "-o", "remount,rw", str(self.folder))
        recovered = self.await_durability(router, "ok", 60)
        print(f"    writable again: recovered after {recovered:.1f} s", file=sys.stderr)
        router.kill()
        router = self.alone(router.machine)
        eventually("the change that was made meanwhile is kept", read, lambda seen: seen == [6], 10)

    def test_d27_the_second_router_on_a_folder_ends_at_once_and_names_the_first(self):
        machine = self.machines(1)[0]
        router = self.alone(machine)
        began = time.monotonic()
        words = ["ip", "netns", "exec", machine.namespace, binary(), "--port", "0", "--data-dir", str(self.folder / machine.name)]
        second = subprocess.run(words, capture_output=True, text=True, timeout=10, env=environment())
        took = time.monotonic() - began
        self.assertNotEqual(second.returncode, 0)
        said = second.stdout + second.stderr
        self.assertIn(f"in use by {machine.name} (pid {router.pid})", said)
        self.assertLess(took, 3)
        self.assertEqual(self.durability(router)["state"], "ok")


if __name__ == "__main__":
    unittest.main(verbosity=2)
