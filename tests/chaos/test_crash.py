"""Routers that die without a word, and come back: D-01, D-02, D-03, D-07 and the promises of the mesh."""

import statistics
import time
import unittest

from load import Clients, StreamReader
from support import LONG, ChaosTest, Events, eventually, moment, quantile, report

# How often each router dies: all of the numbers below are over all deaths.
DEATHS = 20 if LONG else 6


class Crash(ChaosTest):
    def test_d01_kill_9_under_load(self):
        urls = self.workers()
        routers = self.cluster(3, "--worker-urls", ",".join(urls))
        somebody = self.network.machine("somebody")
        for router in routers:
            eventually("ready", lambda r=router: r.ask("GET", "/readiness").status, lambda status: status == 200, 10)
        clients = Clients(somebody, routers)
        time.sleep(1)
        died = routers[1].kill()
        survivors = [routers[0], routers[2]]
        for router in survivors:
            suspected = self.await_transition(router, "node2", "SUSPECTED", died, 6)
            down = self.await_transition(router, "node2", "DOWN", died, 8)
            self.assertLess(suspected, down)
        for router in survivors:
            settled = lambda seen: (seen["smg_mesh_peers_total"], seen['smg_mesh_peer_status{peer="node2"}']) == (1, 0)  # noqa: E731
            eventually("the metrics say so", router.metrics, settled, 2)
            self.assertEqual(router.health()["status"], "degraded")
            self.assertIn("node2 is DOWN", router.health()["reasons"])
        # It stays listed, so that an alert can fire: here for as long as one's patience lasts.
        time.sleep(600 if LONG else 3)
        clients.stop()
        for router in survivors:
            self.assertEqual(router.metrics()['smg_mesh_peer_status{peer="node2"}'], 0)
            self.assertEqual(router.node("node2")["status"], "DOWN")
        self.assertEqual(clients.failures, [])
        self.assertGreater(clients.answered, 100)
        self.assert_calm(survivors)

    def test_crash_and_return_again_and_again(self):
        routers = self.cluster(3)
        suspected, down, order, back = [], [], [], []
        for death in range(DEATHS):
            victim = death % 3
            name = f"node{victim + 1}"
            others = [router for router in routers if router is not routers[victim]]
            generation = others[0].node(name)["generation"]
            died = routers[victim].kill()
            each = [
                (
                    self.await_transition(router, name, "SUSPECTED", died, 10),
                    self.await_transition(router, name, "DOWN", died, 12),
                )
                for router in others
            ]
            suspected.append(max(one for one, _ in each))
            down.append(max(one for _, one in each))
            order += [one < other for one, other in each]
            # The same name at the same address.
            routers[victim] = self.router(routers[victim].machine)
            eventually("it listens", routers[victim].states, lambda seen: name in seen, 5)
            listens = next(one for one in routers[victim].records() if one["message"] == "mesh")
            since = moment(listens)
            back += [self.await_transition(router, name, "ALIVE", since, 5) for router in others]
            self.await_all_alive(routers, 5)
            for router in routers:
                self.assertGreater(int(router.node(name)["generation"]), int(generation))
        report("crash to SUSPECTED everywhere", suspected)
        report("crash to DOWN everywhere", down)
        report("restart with the same name to ALIVE", back)
        self.assertTrue(all(order), "SUSPECTED comes before DOWN")
        self.assertLessEqual(statistics.median(suspected), 3)
        self.assertLessEqual(statistics.median(down), 6)
        self.assertLessEqual(quantile(suspected, 0.99), 6)
        self.assertLessEqual(quantile(down, 0.99), 8)
        self.assertLess(max(back), 0.5)
        self.assert_calm(routers)

    def test_restart_before_anybody_noticed(self):
        routers = self.cluster(3)
        back = []
        for _ in range(5):
            routers[2].kill()
            routers[2] = self.router(routers[2].machine)
            eventually("it listens", routers[2].states, lambda seen: "node3" in seen, 5)
            generation = routers[2].node("node3")["generation"]
            is_new = lambda seen: seen and (seen["generation"], seen["status"]) == (generation, "ALIVE")  # noqa: E731
            back += [eventually("ALIVE as its new life", lambda r=router: r.node("node3"), is_new, 5) for router in routers]
        self.await_all_alive(routers, 1)
        report("quick restart to ALIVE", back)
        self.assertLess(max(back), 0.5)
        time.sleep(6)
        # A suspicion about its former life must not kill this one.
        self.await_all_alive(routers, 1)
        self.assert_never(routers, "DOWN")
        self.assert_calm(routers)

    def test_d02_kill_amid_streams(self):
        urls = self.workers(2, "--decode-tokens-per-second", "20")
        routers = self.cluster(3, "--worker-urls", ",".join(urls))
        somebody = self.network.machine("somebody")
        for router in routers:
            eventually("ready", lambda r=router: r.ask("GET", "/readiness").status, lambda status: status == 200, 10)
        readers = {router: [StreamReader(somebody, router, 120) for _ in range(20 if router is routers[1] else 5)] for router in routers}
        begun = lambda: [bool(reader.text) for all in readers.values() for reader in all]  # noqa: E731, A001
        eventually("all streams have begun", begun, all, 5)
        routers[1].kill()
        self.assertEqual({reader.end(5) for reader in readers[routers[1]]}, {"cut"})
        for router in (routers[0], routers[2]):
            self.assertEqual({reader.end(30) for reader in readers[router]}, {"whole"})

    def test_d03_return_at_another_address(self):
        routers = self.cluster(3)
        generation = routers[0].node("node2")["generation"]
        died = routers[1].kill()
        others = [routers[0], routers[2]]
        for router in others:
            self.await_transition(router, "node2", "DOWN", died, 10)
        # The same name on another machine: what Kubernetes does to a pod of a StatefulSet.
        elsewhere = self.network.machine("elsewhere")
        back = self.router(elsewhere, name="node2")
        began = time.monotonic()
        for router in others:
            moved = lambda seen: (seen["status"], seen["address"]) == ("ALIVE", f"{elsewhere.address}:39527")  # noqa: E731
            eventually(f"{router.machine} has the new node2", lambda r=router: r.node("node2"), moved, 3)
        report("return at another address to ALIVE", [time.monotonic() - began])
        self.assertLess(time.monotonic() - began, 0.5 + 0.5)
        everybody = [*others, back]
        self.await_all_alive(everybody, 2, ["node1", "node2", "node3"])
        self.await_equal_digests(everybody, 5)
        for router in everybody:
            self.assertGreater(router.node("node2")["generation"], generation)
        self.assert_calm(everybody)

    def test_moved_before_anybody_noticed(self):
        # As above, but the old one is still ALIVE in everybody's list: its holder is asked, and does not answer.
        routers = self.cluster(3)
        routers[1].kill()
        elsewhere = self.network.machine("elsewhere")
        back = self.router(elsewhere, name="node2")
        everybody = [routers[0], routers[2], back]
        for router in everybody:
            moved = lambda seen: (seen["status"], seen["address"]) == ("ALIVE", f"{elsewhere.address}:39527")  # noqa: E731
            eventually(f"{router.machine} has the new node2", lambda r=router: r.node("node2"), moved, 3)
        time.sleep(6)
        self.await_all_alive(everybody, 1, ["node1", "node2", "node3"])

    def test_d07_long_outage(self):
        routers = self.cluster(3)
        routers[2].kill()
        self.await_state(routers[:2], "node3", {"DOWN"}, 10)
        time.sleep(60 if LONG else 15)
        routers[2] = self.router(routers[2].machine)
        self.await_all_alive(routers, 10)
        self.await_equal_digests(routers, 10)
        # What could not be sent meanwhile was not kept for ever.
        for router in routers:
            self.assertLess(router.memory(), 400 << 20)
        self.assert_calm(routers)

    def test_all_die_at_once_and_return(self):
        routers = self.cluster(3)
        generations = {router.machine.name: router.node(router.machine.name)["generation"] for router in routers}
        for router in routers:
            router.kill()
        routers = [self.router(router.machine) for router in routers]
        took = self.await_all_alive(routers, 5)
        report("restart of all to all ALIVE", [took])
        for router in routers:
            for node in router.status()["nodes"]:
                self.assertGreater(node["generation"], generations[node["name"]])

    def test_events_tell_it_as_it_happens(self):
        routers = self.cluster(3)
        events = Events(routers[0])
        self.addCleanup(events.close)
        eventually("the list comes first", lambda: events.seen, bool, 2)
        _, kind, first = events.seen[0]
        self.assertEqual(kind, "routers")
        self.assertEqual([one["name"] for one in first["routers"]], ["node1", "node2", "node3"])
        died = routers[2].kill()
        steps = lambda: [one[2]["to"] for one in events.seen if one[1] == "member" and one[2]["name"] == "node3"]  # noqa: E731
        eventually("SUSPECTED, then DOWN", steps, lambda seen: seen == ["SUSPECTED", "DOWN"], 10)
        logged = [at for at, _, _, to in routers[0].transitions("node3") if to == "DOWN"]
        announced = [at for at, kind, data in events.seen if kind == "member" and data["to"] == "DOWN"]
        self.assertLess(abs(announced[0] - logged[0]), 0.5)
        self.assertGreater(announced[0], died)


if __name__ == "__main__":
    unittest.main()
