"""Coming in: cold starts, names that come late, wrong lists, taken names, foreign clusters. D-13, D-14, D-16."""

import time
import unittest

from support import MESH, NET, ChaosTest, eventually, report, request


class Join(ChaosTest):
    LIST = [f"node{number}:{MESH}" for number in (1, 2, 3)]

    def nameless(self, count):
        """Machines without name entries."""
        return [self.network.machine(f"node{number}", names={}) for number in range(1, count + 1)]

    def publish_names(self, machines):
        """Gives every machine the names of all."""
        for machine in machines:
            machine.names = {other.name: other.address for other in machines}
        self.network.tell_names()

    def test_d13_cold_start_before_names_exist(self):
        machines = self.nameless(3)
        routers = [self.router(machine, peers=self.LIST) for machine in machines]
        for router in routers:
            eventually("it answers", router.states, lambda seen: list(seen.values()) == ["INIT"], 5)
        time.sleep(5)
        for router in routers:
            self.assertEqual(list(router.states().values()), ["INIT"])
        self.publish_names(machines)
        took = self.await_all_alive(routers, 5)
        report("names appear to all ALIVE", [took])
        for router in routers:
            self.assertEqual(router.status()["node_count"], 3)
            self.assertEqual(len(router.health()["peers"]), 2)
        self.await_equal_digests(routers, 10)
        self.assert_calm(routers)

    def test_d13_one_by_one(self):
        machines = self.machines(3)
        routers = []
        for machine in machines:
            router = self.router(machine, peers=self.LIST)
            ready = lambda router=router: router.ask("GET", "/readiness").status  # noqa: E731
            took = eventually("it is ready", ready, lambda status: status == 200, 11)
            report(f"start of {machine} to ready", [took])
            routers.append(router)
            if len(routers) < 3:
                time.sleep(10)
            # The first of them is alone, with a list in which others are missing: it looks for them, and serves.
            if len(routers) > 1:
                self.await_all_alive(routers, 5)
        for router in routers:
            self.assertEqual(router.status()["node_count"], 3)
            self.assertEqual(len(router.health()["peers"]), 2)

    def test_d14_stuck_in_init(self):
        # Nobody, somebody who does not listen, and no such name.
        machine, deaf = self.network.machine("node1"), self.network.machine("node2")
        deaf.deafen("-p", "tcp", "--dport", str(MESH))
        peers = [f"node2:{MESH}", f"{NET}.2:4711", f"nowhere:{MESH}", f"{NET}.77:{MESH}"]
        urls = self.workers(1)
        router = self.router(machine, "--worker-urls", urls[0], peers=peers)
        ready = lambda: router.ask("GET", "/readiness").status  # noqa: E731
        took = eventually("it is ready although it can't join", ready, lambda status: status == 200, 11)
        report("start to ready without any peer", [took])
        named = lambda seen: len(seen["join"]) == 4 and all(one["error"] for one in seen["join"])  # noqa: E731
        eventually("each join address has its last error", router.health, named, 10)
        health = router.health()
        self.assertEqual(health["status"], "joining")
        self.assertEqual(health["node"]["status"], "INIT")
        self.assertFalse(any(one["reached"] for one in health["join"]))
        errors = {one["address"]: one["error"] for one in health["join"]}
        self.assertIn("refused", errors[f"{NET}.2:4711"])
        self.assertIn("name", errors[f"nowhere:{MESH}"])
        for address in peers:
            self.assertTrue(any(address in reason for reason in health["reasons"]), health["reasons"])
        question = {"model": "mock-model", "messages": [{"role": "user", "content": "hello"}]}
        self.assertEqual(router.ask("POST", "/v1/chat/completions", question).status, 200)
        # It keeps trying to join, and finds a router that starts later.
        seed = self.router(deaf, peers=[])
        time.sleep(3)
        self.assertEqual(router.health()["node"]["status"], "INIT")
        deaf.heal()
        took = self.await_all_alive([router, seed], 5)
        report("unblocked to ALIVE", [took])

    def test_seed_later_than_its_joiner(self):
        machines = self.machines(2)
        joiner = self.router(machines[1], peers=[f"node1:{MESH}"])
        eventually("it waits", joiner.states, lambda seen: seen == {"node2": "INIT"}, 5)
        time.sleep(6)
        seed = self.router(machines[0], peers=[])
        eventually("the seed is up", seed.states, lambda seen: seen.get("node1") == "ALIVE", 2)
        took = self.await_all_alive([joiner, seed], 5)
        report("seed up to joined", [took])

    def test_two_clusters_become_one(self):
        # Each cluster starts on its own. Then one name resolves to a router of the other cluster, too.
        machines = self.machines(4)
        machines[2].names = {"node1": machines[0].address, "node3": machines[2].address, "node4": machines[3].address}
        first = [self.router(machine, peers=[f"node1:{MESH}", f"node2:{MESH}"]) for machine in machines[:2]]
        second = [self.router(machine, peers=[f"node3:{MESH}", f"node4:{MESH}"]) for machine in machines[2:]]
        self.await_all_alive(first, 5, ["node1", "node2"])
        self.await_all_alive(second, 5, ["node3", "node4"])
        second[0].kill()
        second[0] = self.router(machines[2], peers=[f"node1:{MESH}", f"node4:{MESH}"])
        self.await_all_alive(first + second, 10)

    def test_names_are_resolved_to_all_their_addresses(self):
        # A headless service: one name, as many addresses as there are pods, some of them gone.
        machines = self.machines(2)
        machines[1].names = {}
        self.network.tell_names()
        with open(machines[1]._hosts, "a") as hosts:
            hosts.write(f"{NET}.99 smg-mesh\n{NET}.98 smg-mesh\n{machines[0].address} smg-mesh\n")
        seed = self.router(machines[0], peers=[])
        joiner = self.router(machines[1], peers=[f"smg-mesh:{MESH}"])
        took = self.await_all_alive([seed, joiner], 5)
        report("one of three addresses answers, to ALIVE", [took])
        (join,) = joiner.health()["join"]
        self.assertEqual(len(join["resolved"]), 3)
        self.assertTrue(join["reached"])

    def test_d16_duplicate_name(self):
        routers = self.cluster(3)
        generation = routers[0].node("node2")["generation"]
        elsewhere = self.network.machine("elsewhere")
        began = time.monotonic()
        impostor = self.router(elsewhere, name="node2")
        eventually("it is refused", impostor.health, lambda seen: seen["status"] == "refused", 5)
        report("duplicate name to refused", [time.monotonic() - began])
        reason = impostor.health()["reasons"][0]
        self.assertIn("--mesh-server-name", reason)
        self.assertIn("node2", reason)
        errors = [record for record in impostor.records() if record["level"] == "ERROR"]
        self.assertTrue(any("--mesh-server-name" in str(record) for record in errors), errors)
        self.assertLess(len(errors), 5, "once is enough")
        time.sleep(10)
        for router in routers:
            node = router.node("node2")
            self.assertEqual((node["status"], node["generation"]), ("ALIVE", generation))
            self.assertEqual(node["address"], f"{routers[1].machine.address}:{MESH}")
            self.assertEqual(router.status()["node_count"], 3)
        self.assert_never(routers, "DOWN")
        self.assertEqual(impostor.metrics()["smg_mesh_name_conflict"], 1)
        self.assertIn("another live router uses this one's name", routers[1].log())
        # When the holder has died, the name is free: the one who waits for it gets it.
        routers[1].kill()
        others = [routers[0], routers[2], impostor]
        self.await_all_alive(others, 20, ["node1", "node2", "node3"])

    def test_foreign_cluster(self):
        routers = self.cluster(2)
        elsewhere = self.network.machine("elsewhere")
        foreign = self.router(elsewhere, "--mesh-cluster-id", "other", name="node9", peers=[f"node1:{MESH}"])
        says = lambda seen: any("--mesh-cluster-id" in str(one["error"]) for one in seen["join"])  # noqa: E731
        eventually("it says why it can't join", foreign.health, says, 5)
        self.assertEqual(foreign.health()["node"]["status"], "INIT")
        refused = lambda: routers[0].total("smg_mesh_rejected_total", reason="cluster")  # noqa: E731
        eventually("it is counted", refused, lambda count: count > 0, 5)
        time.sleep(3)
        self.await_all_alive(routers, 1)
        lines = [record for router in (*routers, foreign) for record in router.records() if "another cluster" in str(record)]
        self.assertTrue(lines)
        self.assertLess(len(lines), 20, "a line for each attempt is a flood")
        self.assertEqual(request(elsewhere, "127.0.0.1", "GET", "/liveness").status, 200)


if __name__ == "__main__":
    unittest.main()
