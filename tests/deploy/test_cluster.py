"""A real Prometheus that scrapes three real routers: does every panel show something, and does every alert find what it
asks for? Both are asked in Prometheus' own words, with Grafana's variables filled in.

Needs prometheus; SMG_PROMETHEUS names it if it is not on the path.
"""

import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import threading
import unittest
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "sdk"))

from support import Process, Router, eventually, mock_workers  # noqa: E402

PROMETHEUS = os.environ.get("SMG_PROMETHEUS") or shutil.which("prometheus")
DASHBOARD = ROOT / "grafana" / "dashboards" / "smg.json"
RULES = ROOT / "deploy" / "prometheus" / "smg-rules.yml"
NAMES = ["node1", "node2", "node3"]
# So many that each worker has some: a conversation stays with its worker, and one in ten of its requests fails there.
CONVERSATIONS = 60


class Node(Router):
    """A router of the cluster on ports that the system chose."""

    def __init__(self, name, workers, peers):
        mesh = ["--enable-mesh", "--mesh-server-name", name, "--mesh-host", "127.0.0.1", "--mesh-port", "0"]
        if peers:
            mesh += ["--mesh-peer-urls", ",".join(peers)]
        # Workers fail on purpose here: a breaker that opens would take what is measured away.
        super().__init__(workers, *mesh, "--cb-failure-threshold", "1000000")
        self.name = name

    @property
    def mesh(self):
        """Where the others find it."""
        events = (json.loads(line) for line in self.lines if line.startswith("{"))
        return next(event["address"] for event in events if event.get("message") == "mesh")

    def is_joined(self):
        states = {node["name"]: node["status"] for node in self.get("/ha/status")["nodes"]}
        return states == dict.fromkeys(NAMES, "ALIVE")


class Prometheus(Process):
    """Prometheus with our rules, at a pace for tests."""

    def __init__(self, directory, targets):
        config = directory / "prometheus.yml"
        # JSON is YAML.
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(RULES)],
                    "scrape_configs": [{"job_name": "smg", "static_configs": [{"targets": targets}]}],
                }
            )
        )
        super().__init__(
            [
                PROMETHEUS,
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                "--web.listen-address=127.0.0.1:0",
                "--log.format=json",
            ]
        )
        self.url = "http://" + self.find(r'"address":"(127\.0\.0\.1:[1-9][0-9]*)"')[1]
        self.find("Server is ready")

    def ask(self, path, **parameters):
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, query):
        """What a query shows; numbers only."""
        result = self.ask("/api/v1/query", query=query)["result"]
        return [float(series["value"][1]) for series in result if series["value"][1] != "NaN"]

    def alerts(self):
        """Alerts that fire, or will when their time is over, with the peer that they name."""
        return {(a["labels"]["alertname"], a["labels"].get("peer")) for a in self.ask("/api/v1/alerts")["alerts"]}


class Traffic(threading.Thread):
    """Conversations with all routers until it is stopped."""

    def __init__(self, routers):
        super().__init__(daemon=True)
        self._routers = list(routers)
        self._over = threading.Event()

    def run(self):
        turn = 0
        while not self._over.wait(0.01):
            turn += 1
            words = "All work and no play makes Jack a dull boy. " * (10 + turn % 7)
            document = {"model": "mock-model", "max_tokens": 4, "stream": turn % 2 == 0}
            document["messages"] = [{"role": "user", "content": f"{turn % CONVERSATIONS} {words}"}]
            router = self._routers[turn % len(self._routers)]
            request = urllib.request.Request(f"{router.url}/v1/chat/completions", json.dumps(document).encode())
            request.add_header("content-type", "application/json")
            try:
                urllib.request.urlopen(request, timeout=10).read()
            except OSError:
                # A router that was killed, or a worker that hung up.
                pass

    def stop(self):
        self._over.set()
        self.join()


def misbehave(worker, **script):
    """Makes a mock worker do this to one request in ten."""
    faults = json.dumps({"script": script, "fraction": 0.1}).encode()
    request = urllib.request.Request(f"{worker}/_mock/faults", faults, method="PUT")
    urllib.request.urlopen(request, timeout=10).close()


def queries():
    """Each query of the dashboard, by panel, with its variables filled in."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], re.sub(r"\$(job|instance|model)\b", ".*", query)


@unittest.skipUnless(PROMETHEUS, "prometheus is not installed")
class Cluster(unittest.TestCase):
    def setUp(self):
        workers, self.workers = mock_workers(3)
        self.addCleanup(workers.stop)
        self.nodes = []
        for name in NAMES:
            self.nodes.append(self.start(name))
        eventually(lambda: all(node.is_joined() for node in self.nodes), "the routers are one cluster")
        traffic = Traffic(self.nodes)
        traffic.start()
        self.addCleanup(traffic.stop)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        targets = [node.url.removeprefix("http://") for node in self.nodes]
        self.prometheus = Prometheus(pathlib.Path(directory.name), targets)
        self.addCleanup(self.prometheus.stop)

    def start(self, name):
        node = Node(name, self.workers, [node.mesh for node in self.nodes])
        self.addCleanup(node.stop)
        return node

    def test_every_panel_shows_something(self):
        # Failures have panels, too: one that is tried again, and one that is not.
        misbehave(self.workers[0], status=503)
        misbehave(self.workers[1], cut_before_head=True)
        wanted = list(queries())
        self.assertGreater(len(wanted), 40)
        for panel, query in wanted:
            self.assertNotIn("$", query, panel)
        empty = wanted

        def all_show():
            empty[:] = [(panel, query) for panel, query in empty if not self.prometheus.values(query)]
            return not empty

        try:
            eventually(all_show, "every panel shows something")
        except AssertionError:
            self.fail("nothing is shown by\n" + "\n".join(f"{panel}: {query}" for panel, query in empty))

    def test_every_variable_has_values(self):
        variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
        asked = [re.fullmatch(r"label_values\((\w+).*, (\w+)\)", v["query"]["query"]) for v in variables[1:]]
        self.assertEqual([found[2] for found in asked], ["job", "instance", "model"])
        for found in asked:
            path, parameters = f"/api/v1/label/{found[2]}/values", {"match[]": found[1]}
            eventually(lambda: self.prometheus.ask(path, **parameters), f"{found[1]} has the label {found[2]}")

    def test_a_lost_router_is_paged_for_and_a_whole_cluster_is_quiet(self):
        def rules():
            groups = self.prometheus.ask("/api/v1/rules")["groups"]
            return [rule for group in groups for rule in group["rules"]]

        eventually(lambda: {rule["health"] for rule in rules()} == {"ok"}, "every rule was evaluated")
        eventually(lambda: not self.prometheus.alerts(), "no alert while all is well")
        lost = self.nodes.pop()
        lost.kill()
        paged = {("SMGNodeDown", lost.name), ("SMGClusterDegraded", None)}
        eventually(lambda: self.prometheus.alerts() == paged, f"{lost.name} is missed")
        self.nodes.append(self.start(lost.name))
        eventually(lambda: not self.prometheus.alerts(), f"{lost.name} is back")


if __name__ == "__main__":
    unittest.main()
