"""Who leads: a leader that hands over, stands still or is killed, and clusters without a majority. D-21, D-22.

The gate kills one leader; SMG_TEST_ROUNDS=20 kills as many, one after the other, and reports the quantile.
"""

import os
import threading
import time
import unittest

from load import QUESTION
from support import API, ChaosTest, eventually, quantile, report

ROUNDS = int(os.environ.get("SMG_TEST_ROUNDS", "1"))


class Requests:
    """Sends requests to a router all the time: a lease must not matter to them."""

    def __init__(self, router):
        self.router, self.failures, self.count = router, [], 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(0.05):
            try:
                status = self.router.ask("POST", "/v1/chat/completions", QUESTION).status
            except OSError as error:
                status = error
            self.count += 1
            if status != 200:
                self.failures.append(status)

    def end(self):
        self._stop.set()
        self._thread.join()


class Lease(ChaosTest):
    def leader_of(self, routers, within=20, but=None):
        """The router that all of these take for the leader, and that takes itself for it."""

        def read():
            answers = [router.get("/ha/leader") for router in routers]
            names = {answer["leader"] for answer in answers}
            return names, sum(answer["ha_mode"] == "leader" for answer in answers)

        def is_settled(seen):
            names, leaders = seen
            # No two at the same time, whenever it is asked. A router that stands still is not asked.
            self.assertLessEqual(leaders, 1, names)
            return leaders == 1 and len(names) == 1 and names != {but}

        eventually("all know one leader", read, is_settled, within)
        name = routers[0].get("/ha/leader")["leader"]
        return next(router for router in routers if router.machine.name == name)

    def assert_refused(self, router, codes):
        """That the router refuses what only the leader may do; its answer."""
        answer = router.ask("POST", "/ha/leader/step-down")
        self.assertEqual(answer.status, 503, answer.body)
        self.assertIn(answer.json()["error"]["code"], codes)
        return answer

    def test_d21_a_leader_hands_over_stands_still_and_is_killed(self):
        flags = ("--worker-urls", ",".join(self.workers(1)), "--mesh-expected-replicas", "3")
        routers = self.cluster(3, *flags)
        leader = self.leader_of(routers)
        term = leader.get("/ha/leader")["term"]
        follower, third = (router for router in routers if router is not leader)
        requests = Requests(third)
        self.addCleanup(requests.end)
        self.assert_refused(follower, ["not_leader"])
        asked = time.monotonic()
        answer = leader.ask("POST", "/ha/leader/transfer", {"to": follower.machine.name})
        took = time.monotonic() - asked
        report("transfer of the leadership", [took])
        self.assertEqual((answer.status, answer.json()["leader"]), (200, follower.machine.name), answer.body)
        self.assertLess(took, 1)
        refused = self.assert_refused(leader, ["not_leader"])
        self.assertIn(f":{API}", refused.headers["x-smg-leader-url"])
        self.assertGreater(follower.get("/ha/leader")["term"], term)
        # The leader stands still for 20 s. When it goes on, it does not act as the leader.
        frozen, others = follower, [leader, third]
        stopped = time.monotonic()
        frozen.freeze()
        self.addCleanup(frozen.thaw)
        self.leader_of(others, 10, but=frozen.machine.name)
        report("stopped leader to the next one", [time.monotonic() - stopped])
        time.sleep(max(0.0, stopped + 20 - time.monotonic()))
        frozen.thaw()
        self.assert_refused(frozen, ["not_leader", "no_quorum"])
        self.await_all_alive(routers, 10)
        requests.end()
        self.assertEqual(requests.failures, [])
        self.assertGreater(requests.count, 100)
        times = []
        for _ in range(ROUNDS):
            leader = self.leader_of(routers)
            others = [router for router in routers if router is not leader]
            killed = time.monotonic()
            leader.kill()
            self.leader_of(others, 30, but=leader.machine.name)
            times.append(time.monotonic() - killed)
            if ROUNDS > 1:
                routers = [*others, self.router(leader.machine, *flags)]
                self.await_all_alive(routers, 20)
                # A router that has lost its memory abstains for 6 s: the next one must not die before.
                time.sleep(8)
        report("killed leader to the next one", times)
        self.assertLess(quantile(times, 0.99), 10)

    def test_d22_without_a_majority_routers_serve_and_none_leads(self):
        routers = self.cluster(3, "--worker-urls", ",".join(self.workers(1)), "--mesh-expected-replicas", "3")
        self.leader_of(routers)
        left = routers[0]
        for router in routers[1:]:
            router.kill()
        is_read_only = lambda seen: seen["ha_mode"] == "read_only" and not seen["quorum"] and not seen["leader"]  # noqa: E731
        eventually("it is read_only", lambda: left.get("/health"), is_read_only, 20)
        self.assert_refused(left, ["no_quorum"])
        statuses = {left.ask("POST", "/v1/chat/completions", QUESTION).status for _ in range(100)}
        self.assertEqual(statuses, {200})
        numbers = left.metrics()
        self.assertEqual((numbers["smg_mesh_quorum"], numbers["smg_mesh_is_leader"]), (0, 0))

    def test_d22_five_routers_with_two_dead_have_a_leader(self):
        routers = self.cluster(5, "--mesh-expected-replicas", "5")
        leader = self.leader_of(routers)
        dead = [leader, next(router for router in routers if router is not leader)]
        killed = time.monotonic()
        for router in dead:
            router.kill()
        self.leader_of([router for router in routers if router not in dead], 10, but=leader.machine.name)
        report("two of five killed to the next leader", [time.monotonic() - killed])


if __name__ == "__main__":
    unittest.main(verbosity=2)
