"""Networks that lose packets: cut clean, cut one way, cut by port, cut by stream, or just bad. D-04, D-05, D-06, D-08."""

import re
import sys
import threading
import time
import unittest

from load import Clients
from support import LONG, MESH, ChaosTest, always, eventually, report


class Partition(ChaosTest):
    def test_d04_mesh_port_blocked(self):
        urls = self.workers()
        routers = self.cluster(3, "--worker-urls", ",".join(urls))
        somebody = self.network.machine("somebody")
        for router in routers:
            eventually("ready", lambda r=router: r.ask("GET", "/readiness").status, lambda status: status == 200, 10)
        clients = Clients(somebody, [routers[2]], rate=50, retries=0)
        cut = time.time()
        routers[2].machine.block_mesh()
        for router in routers[:2]:
            self.await_transition(router, "node3", "DOWN", cut, 8)
            self.assertEqual(router.states(), {"node1": "ALIVE", "node2": "ALIVE", "node3": "DOWN"})
        for name in ("node1", "node2"):
            self.await_transition(routers[2], name, "DOWN", cut, 8)
        health = routers[2].health()
        self.assertEqual(health["status"], "degraded")
        self.assertIn("node1 is DOWN", health["reasons"])
        self.assertIn("node2 is DOWN", health["reasons"])
        time.sleep(3)
        clients.stop()
        self.assertEqual(clients.failures, [])
        self.assertGreater(clients.answered, 100)
        routers[2].machine.heal()
        took = self.await_all_alive(routers, 10)
        self.await_equal_digests(routers, 10 - took)
        report("mesh port open again to all ALIVE and digests equal", [took])
        self.assert_calm(routers)

    def cut_and_heal(self, minority, count, seconds, during=lambda: None):
        """Cuts the first `minority` of `count` routers off for a while."""
        routers = self.cluster(count)
        self.cut_and_heal_these(routers, minority, seconds, during)

    def cut_and_heal_these(self, routers, minority, seconds, during=lambda: None):
        generations = {router.machine.name: router.node(router.machine.name)["generation"] for router in routers}
        few, many = routers[:minority], routers[minority:]
        for router in few:
            router.machine.cut_from(*(other.machine for other in many))
        began = time.time()
        for side, other in ((few, many), (many, few)):
            alive = {router.machine.name: "ALIVE" for router in side}
            down = {router.machine.name: "DOWN" for router in other}
            for router in side:
                eventually(f"{router.machine} sees its side only", router.states, lambda seen: seen == alive | down, 12)
        during()
        for side in (few, many):
            names = {router.machine.name for router in side}
            left = max(1.0, began + seconds - time.time()) / len(routers)
            for router in side:
                together = lambda seen: all(seen[name] == "ALIVE" for name in names)  # noqa: E731
                always(f"{router.machine}'s side stays together", router.states, together, left)
        for router in few:
            router.machine.heal()
        took = self.await_all_alive(routers, 10)
        took += self.await_equal_digests(routers, 10 - took)
        report(f"partition {len(few)} | {len(many)} of {seconds} s healed to all ALIVE and digests equal", [took])
        for router in routers:
            # DOWN was a mistake of the network: nobody's state was reset for it.
            for node in router.status()["nodes"]:
                self.assertEqual(node["generation"], generations[node["name"]])
        self.assert_calm(routers)

    def test_d05_d06_partition_under_load(self):
        urls = self.workers()
        routers = self.cluster(3, "--worker-urls", ",".join(urls))
        somebody = self.network.machine("somebody")
        for router in routers:
            eventually("ready", lambda r=router: r.ask("GET", "/readiness").status, lambda status: status == 200, 10)
        clients = Clients(somebody, routers, retries=0)
        self.cut_and_heal_these(routers, 1, 60 if LONG else 30)
        clients.stop()
        self.assertEqual(clients.failures, [])
        self.assertGreater(clients.answered, 1000)

    def test_d05_partition_of_five(self):
        self.cut_and_heal(2, 5, 30)

    def test_d05_partition_of_two(self):
        # Nobody is left on either side who would remember the other: only join probes heal this.
        self.cut_and_heal(1, 2, 20)

    def test_partition_when_all_links_break_with_resets(self):
        # Not silence but refusal: what a firewall with REJECT does.
        routers = self.cluster(3)
        machine = routers[0].machine
        reject = ["-j", "REJECT", "--reject-with", "tcp-reset"]
        for end in ("--dport", "--sport"):
            machine.run("iptables", "-w", "5", "-A", "INPUT", "-p", "tcp", end, str(MESH), *reject)
        for router in routers[1:]:
            self.await_state([router], "node1", {"DOWN"}, 10)
        machine.heal()
        took = self.await_all_alive(routers, 10)
        self.await_equal_digests(routers, 10)
        report("resets ended to all ALIVE", [took])

    def test_d08_one_way(self):
        # Nothing from node1 reaches node2, not even acknowledgements; both reach node3.
        routers = self.cluster(3)
        routers[1].machine.deafen("-s", routers[0].machine.address)
        says = lambda seen: any("connection to node2" in reason for reason in seen["reasons"])  # noqa: E731
        took = eventually("node1 says that it can't reach node2", routers[0].health, says, 5)
        report("one way cut to degraded", [took])
        time.sleep(300 if LONG else 30)
        self.assert_never(routers, "DOWN")
        for router in routers:
            self.assertEqual(router.status()["alive_count"], 3)
        routers[1].machine.heal()
        self.await_all_alive(routers, 10)
        for router in routers:
            eventually("all is well again", router.health, lambda seen: seen["reasons"] == [], 10)
        self.assert_calm(routers)

    def lossy(self, count, share, seconds):
        """A network that loses packets for a while; how many times somebody alive was called dead, by incident."""
        routers = self.cluster(count)
        for router in routers:
            router.machine.lose(share)
        began = time.time()
        time.sleep(seconds)
        steps = [(router, *step) for router in routers for step in router.transitions() if step[0] > began]
        suspected = [step for step in steps if step[4] == "SUSPECTED"]
        downs = sorted((at, name) for _, at, name, _, to in steps if to == "DOWN")
        # Several reports of the same router within a second are one mistake.
        mistakes = [(at, name) for at, name in downs if not any(other == name and 0 < at - before < 1 for before, other in downs)]
        print(f"\n    measured: {share:.0%} loss, {count} routers, {seconds} s: {len(suspected)} SUSPECTED, {len(mistakes)} DOWN", file=sys.stderr)
        for router in routers:
            router.machine.heal()
        self.await_all_alive(routers, 10)
        self.await_equal_digests(routers, 10)
        for router in routers:
            self.assert_cleared(router, 2 + 3)
        self.assert_calm(routers)
        return mistakes

    def test_ten_per_cent_loss(self):
        self.assertEqual(self.lossy(5, 0.1, 600 if LONG else 60), [])

    def test_d08_thirty_per_cent_loss(self):
        # One in ten minutes is wanted, and not reached: docs/benchmarks.md. It was nine a minute before links kept linear
        # retransmission, and about one since: an everyday minute notices when that is lost, the long run measures the wish.
        self.assertLessEqual(len(self.lossy(3, 0.3, 600 if LONG else 60)), 1 if LONG else 4)

    def assert_cleared(self, router, within):
        since = {}
        for at, name, _, to in router.transitions():
            if to == "SUSPECTED":
                since[name] = at
            elif name in since:
                self.assertLess(at - since.pop(name), within, f"{router.machine} suspected {name} for so long")

    def lane(self, call, lane):
        """Blocks one of the two connections between node1 and node2, in both directions."""
        routers = self.cluster(3, RUST_LOG="info,smg::mesh=debug")
        pair = routers[:2]
        for router, other in (pair, pair[::-1]):
            source_address = re.compile(rf"^{re.escape(router.machine.address)}:(\d+)$")
            ports = {
                source_address.match(record["from"])[1]
                for record in other.records()
                if record["message"] == "receiving frames" and record["lane"].lower() == lane and source_address.match(record["from"])
            }
            self.assertTrue(ports)
            router.machine.block_stream(other.machine, call, ports)
        for router, other in (pair, pair[::-1]):
            wanted = f"no {lane} connection to {other.machine}"
            says = lambda seen: seen["status"] == "degraded" and any(wanted in one for one in seen["reasons"])  # noqa: E731, B023
            took = eventually(f"{router.machine} says that {lane} is blocked", router.health, says, 5)
            report(f"{lane} blocked to degraded", [took])
            down = lambda seen: seen[f'smg_mesh_connections{{lane="{lane}",state="down"}}']  # noqa: E731
            eventually("the metrics say so", lambda r=router: down(r.metrics()), bool, 3)
        time.sleep(15)
        # The other one works, and so does everything else: nobody is called dead for it.
        self.assert_never(routers, "DOWN")
        for router in routers:
            self.assertEqual(router.states(), {name: "ALIVE" for name in ("node1", "node2", "node3")})
        for router in pair:
            reasons = router.health()["reasons"]
            self.assertEqual([reason for reason in reasons if lane not in reason], [])
        for router in pair:
            router.machine.heal()
        for router in pair:
            eventually("all is well again", router.health, lambda seen: seen["reasons"] == [], 10)
        self.assert_calm(routers)

    def test_state_connection_blocked(self):
        self.lane("Sync", "state")

    def test_swim_connection_blocked(self):
        self.lane("Swim", "swim")

    def test_cut_pair_of_five(self):
        # Two of five don't reach each other; the three others reach both, so all stay ALIVE.
        routers = self.cluster(5)
        routers[0].machine.cut_from(routers[1].machine)
        time.sleep(20)
        self.assert_never(routers, "DOWN")
        routers[0].machine.heal()
        self.await_all_alive(routers, 5)

    def test_hung_peer_harms_nobody(self):
        # An address that accepts and never answers, as a join address of all.
        hung = self.network.machine("hung")
        listener = hung.socket()
        listener.bind((hung.address, MESH))
        listener.listen(64)
        self.addCleanup(listener.close)
        accepted = []
        self.addCleanup(lambda: [tcp.close() for tcp, _ in accepted])
        threading.Thread(target=self.accept, args=(listener, accepted), daemon=True).start()
        machines = self.machines(3)
        peers = [f"{machine}:{MESH}" for machine in [*machines, hung]]
        routers = [self.router(machine, peers=peers) for machine in machines]
        took = self.await_all_alive(routers, 5)
        report("join beside a hung address", [took])
        time.sleep(10)
        self.assert_never(routers, "SUSPECTED")
        self.assertTrue(accepted)
        for router in routers:
            (join,) = [one for one in router.health()["join"] if one["address"].startswith("hung")]
            self.assertFalse(join["reached"])
            self.assertIn("introduction", join["error"])
        # It is dialled again and again, but not as if there were no tomorrow.
        self.assertLess(len(accepted), 3 * 2 * 15)

    def accept(self, listener, accepted):
        try:
            while True:
                accepted.append(listener.accept())
        except OSError:
            return


if __name__ == "__main__":
    unittest.main()
