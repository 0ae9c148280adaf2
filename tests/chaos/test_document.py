"""The document's commands, word for word, on machines whose names its examples use."""

import itertools
import json
import os
import pathlib
import random
import shutil
import sys
import time
import unittest

from support import API, ChaosTest, Process, Router, binary, eventually, request

NODE_1 = r"""
smg --enable-mesh \
    --mesh-server-name node1 \
    --mesh-host 0.0.0.0 \
    --mesh-port 39527 \
    --host 0.0.0.0 \
    --port 8000
"""

NODE_2 = r"""
smg --enable-mesh \
    --mesh-server-name node2 \
    --mesh-port 39527 \
    --mesh-peer-urls "node1:39527" \
    --host 0.0.0.0 \
    --port 8000
"""

NODE_3 = r"""
smg --enable-mesh \
    --mesh-server-name node3 \
    --mesh-port 39527 \
    --mesh-peer-urls "node1:39527,node2:39527" \
    --host 0.0.0.0 \
    --port 8000
"""

VARIABLES = r"""
export SMG_ENABLE_MESH=true
export SMG_MESH_SERVER_NAME=node1
export SMG_MESH_HOST=0.0.0.0
export SMG_MESH_PORT=39527
export SMG_MESH_PEER_URLS="node1:39527,node2:39527"
smg
"""

THREE = r"""
# All nodes
smg --enable-mesh \
    --mesh-peer-urls "node1:39527,node2:39527,node3:39527" \
    --worker-urls http://worker1:8000,http://worker2:8000
"""

FIVE = r"""
# All nodes
smg --enable-mesh \
    --mesh-peer-urls "node1:39527,node2:39527,node3:39527,node4:39527,node5:39527" \
    --worker-urls http://worker1:8000,http://worker2:8000
"""

STATUS = """
{
  "node_name": "node1",
  "node_count": 3,
  "nodes": [
    {"name": "node1", "status": "ALIVE", "address": "node1:39527"},
    {"name": "node2", "status": "ALIVE", "address": "node2:39527"},
    {"name": "node3", "status": "ALIVE", "address": "node3:39527"}
  ],
  "stores": {
    "workers": {"entry_count": 5, "last_sync": "2024-01-15T10:30:00Z"},
    "policies": {"entry_count": 2, "last_sync": "2024-01-15T10:30:00Z"}
  }
}
"""


class Document(ChaosTest):
    def type(self, machine, script):
        """Types a script into a machine's shell, where `smg` is in the path."""
        path = pathlib.Path(self.network.directory) / "bin"
        path.mkdir(exist_ok=True)
        if not (path / "smg").exists():
            (path / "smg").symlink_to(binary())
        return Router(machine, "sh", "-e", "-c", script, PATH=f"{path}:{os.environ['PATH']}")

    def mock_workers(self):
        for name in ("worker1", "worker2"):
            machine = self.network.machine(name)
            words = [binary(), "mock-worker", "--host", "0.0.0.0", "--port", "8000", "--name", name]
            worker = Process(machine, *words)
            eventually(f"{name} serves", worker.log, lambda log: " on http://" in log, 20)

    def test_three_nodes(self):
        machines = self.machines(3)
        node1 = self.type(machines[0], NODE_1)
        took = eventually("node1 is ALIVE", node1.states, lambda seen: seen == {"node1": "ALIVE"}, 1)
        print(f"\n    measured: node1 ALIVE {took:.2f} s after its start", file=sys.stderr)
        began = time.monotonic()
        routers = [node1, self.type(machines[1], NODE_2), self.type(machines[2], NODE_3)]
        self.await_all_alive(routers, 5)
        print(f"\n    measured: all ALIVE {time.monotonic() - began:.2f} s after the start of the others", file=sys.stderr)
        for router in routers:
            status = router.status()
            self.assertEqual(status["node_count"], 3)
            # --mesh-host was given once and omitted twice: the others must be able to connect to the advertised addresses.
            addresses = [node["address"] for node in status["nodes"]]
            self.assertEqual(addresses, [f"{machine.address}:39527" for machine in machines])

    def test_status_has_the_shape_of_the_document(self):
        machines = self.machines(3)
        routers = [self.type(machine, script) for machine, script in zip(machines, (NODE_1, NODE_2, NODE_3))]
        self.await_all_alive(routers, 5)
        documented = json.loads(STATUS)
        # The first comparison of the stores with another router comes a second later.
        synced = lambda seen: all(seen["stores"][store]["last_sync"] for store in documented["stores"])  # noqa: E731
        eventually("stores were compared", routers[0].status, synced, 10)
        status = routers[0].status()
        self.assert_has_shape(status, documented, "status")
        self.assertEqual([node["name"] for node in status["nodes"]], ["node1", "node2", "node3"])

    def assert_has_shape(self, seen, wanted, where):
        """All keys of what is wanted are there, with values of the same kind; more keys are allowed."""
        self.assertIs(type(seen), type(wanted), where)
        if isinstance(wanted, dict):
            for key, value in wanted.items():
                self.assertIn(key, seen, where)
                self.assert_has_shape(seen[key], value, f"{where}.{key}")
        if isinstance(wanted, list):
            for one in seen:
                self.assert_has_shape(one, wanted[0], f"{where}[]")

    def test_variables(self):
        machines = self.machines(2)
        node1 = self.type(machines[0], VARIABLES)
        # The list names node1 itself and one that does not run yet: it is not alone, so it looks for the other.
        eventually("node1 answers", node1.states, lambda seen: list(seen) == ["node1"], 5)
        node2 = self.type(machines[1], VARIABLES.replace("SERVER_NAME=node1", "SERVER_NAME=node2"))
        self.await_all_alive([node1, node2], 5)

    def orders(self, script, orders):
        """Starts a cluster again and again, in each of the orders, with the same list on all nodes."""
        self.mock_workers()
        count = len(orders[0])
        machines = self.machines(count)
        for order in orders:
            with self.subTest(order=order):
                routers = {}
                for number in order:
                    routers[number] = self.type(machines[number], script)
                    time.sleep(0.2)
                self.await_all_alive(list(routers.values()), 5)
                for router in routers.values():
                    # A router that talked to itself would be its own peer.
                    names = [peer["name"] for peer in router.health()["peers"]]
                    self.assertEqual(len(names), count - 1)
                    self.assertNotIn(router.machine.name, names)
                    self.assertEqual(router.metrics()["smg_mesh_peers_total"], count - 1)
                ready = lambda router=router: router.ask("GET", "/readiness").json()  # noqa: E731
                eventually("the workers are ready", ready, lambda seen: seen.get("healthy_workers") == 2, 10)
                for router in routers.values():
                    router.kill()

    def test_three_nodes_that_name_themselves_in_any_order(self):
        self.orders(THREE, list(itertools.permutations(range(3))))

    def test_five_nodes_that_name_themselves_in_any_order(self):
        shuffled = random.Random(4).sample(range(5), 5)
        self.orders(FIVE, [tuple(range(5)), tuple(reversed(range(5))), tuple(shuffled)])

    def test_curl_and_jq(self):
        for tool in ("curl", "jq"):
            if not shutil.which(tool):
                print(f"\n!!! SKIPPED: {tool} is not installed", file=sys.stderr)
                self.skipTest(f"{tool} is not installed")
        machines = self.machines(3)
        somebody = self.network.machine("somebody")
        routers = [self.type(machine, script) for machine, script in zip(machines, (NODE_1, NODE_2, NODE_3))]
        self.await_all_alive(routers, 5)
        status = json.loads(somebody.run("sh", "-c", "curl http://node1:8000/ha/status | jq"))
        self.assertEqual(status["node_count"], 3)
        health = json.loads(somebody.run("sh", "-c", "curl http://node1:8000/ha/health | jq"))
        self.assertEqual(health["status"], "ok")
        workers = json.loads(somebody.run("sh", "-c", "curl http://node1:8000/ha/workers | jq"))
        self.assertEqual(workers["total"], 0)
        policies = json.loads(somebody.run("sh", "-c", "curl http://node1:8000/ha/policies | jq"))
        self.assertEqual(policies["default"], "cache_aware")

    def test_debug_logging(self):
        machines = self.machines(2)
        routers = [self.router(machines[0], RUST_LOG="smg::mesh=debug"), self.router(machines[1])]
        self.await_all_alive(routers, 5)
        # The mesh is a crate of its own: its targets begin with smg_mesh.
        targets = [(record["level"], record["target"].replace("smg_mesh", "smg::mesh")) for record in routers[0].records()]
        modules = {(level, target.split("::")[0:2][-1]) for level, target in targets}
        self.assertIn(("DEBUG", "mesh"), modules)
        self.assertLessEqual({module for _, module in modules}, {"mesh"})

    def test_nonsense_is_a_configuration_error(self):
        (machine,) = self.machines(1)
        for nonsense in ("node1:port", "http://node1/path", "no!de", ":39527", "node1:70000"):
            with self.subTest(nonsense):
                router = Router(machine, binary(), "--enable-mesh", "--mesh-peer-urls", nonsense)
                self.assertEqual(router.wait(5), 2)
                self.assertIn("mesh-peer-urls", router.log())

    def test_nothing_listens_without_the_mesh(self):
        (machine,) = self.machines(1)
        router = Router(machine, binary(), "--min-ready-workers", "0")
        eventually("it answers for itself", router.status, lambda seen: seen["node_count"] == 1, 5)
        self.assertEqual(router.status()["ha_mode"], "standalone")
        with self.assertRaises(ConnectionRefusedError):
            machine.connect("127.0.0.1", 39527)
        self.assertEqual(request(machine, machine.address, "GET", "/ha/health", port=API).json()["status"], "ok")


if __name__ == "__main__":
    unittest.main()
