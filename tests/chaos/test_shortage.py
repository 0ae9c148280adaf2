"""A router that lacks resources of its own: no worker is judged by that, on no router."""

import concurrent.futures
import re
import time
import unittest

from support import ChaosTest, always, eventually, report, request

MODEL = "mock-model"


class Shortage(ChaosTest):
    def start(self, *flags):
        """Two routers that share three slow workers."""
        self.urls = self.workers(3, "--decode-tokens-per-second", "4")
        probes = ["--health-check-interval-secs", "0.3", "--health-failure-threshold", "1", "--health-probers", "2"]
        routers = self.cluster(2, "--worker-urls", ",".join(self.urls), *probes, *flags)
        self.outside = self.network.machine("client")
        for router in routers:
            ready = lambda router=router: router.ask("GET", "/readiness").json()  # noqa: E731
            eventually(f"{router.machine} is ready", ready, lambda seen: seen["healthy_workers"] == 3, 15)
        return routers

    def chat(self, router):
        document = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
        return request(self.outside, router.machine.address, "POST", "/v1/chat/completions", document, timeout=20)

    def ask(self, router, path):
        # From outside: what is asked from within takes ports as well.
        return request(self.outside, router.machine.address, "GET", path)

    def all_well(self, routers):
        """Every router routes to every worker, and has no bad observation of it."""

        def verdicts():
            seen = []
            for router in routers:
                for worker in self.ask(router, "/ha/workers").json()["workers"]:
                    observed = worker["observations"].values()
                    breakers = {worker["breaker"]} | {each["breaker"] for each in observed}
                    health = {each["health"] for each in observed} - {"unknown"}
                    seen.append((worker["state"], worker["routed"], breakers, health))
            return seen

        holds = lambda seen: all(one == ("ready", True, {"closed"}, {"healthy"}) for one in seen)  # noqa: E731
        return verdicts, holds

    def test_no_ports_are_left(self):
        routers = self.start()
        short, other = routers
        port_range = "/proc/sys/net/ipv4/ip_local_port_range"
        short.machine.run("sh", "-c", f"echo 40000 40007 > {port_range}")
        with concurrent.futures.ThreadPoolExecutor(60) as clients:
            began = time.monotonic()
            asked = [clients.submit(self.chat, short) for _ in range(60)]
            lacking = lambda: self.ask(short, "/metrics").body.decode()  # noqa: E731
            some = lambda seen: re.search(r'smg_own_shortages_total{kind="ports"} [1-9]', seen)  # noqa: E731
            eventually("ports are short", lacking, some, 10)
            verdicts, holds = self.all_well(routers)
            always("no worker is judged", verdicts, holds, 1.5)
            answers = [answer.result() for answer in asked]
            report("60 requests with 8 ports", [time.monotonic() - began])
        refused = [answer for answer in answers if answer.status != 200]
        self.assertEqual({(each.status, each.json()["error"]["code"]) for each in refused}, {(503, "router_out_of_resources")})
        self.assertGreater(len(answers) - len(refused), 8)
        verdicts, holds = self.all_well(routers)
        always("no worker is judged afterwards", verdicts, holds, 1.5)
        self.assertEqual(self.chat(other).status, 200)
        short.machine.run("sh", "-c", f"echo 32768 60999 > {port_range}")
        with concurrent.futures.ThreadPoolExecutor(60) as clients:
            statuses = {answer.status for answer in clients.map(lambda _: self.chat(short), range(60))}
        self.assertEqual(statuses, {200})
        lines = [record for record in short.records() if record.get("kind") == "ports"]
        self.assertIn(len(lines), (1, 2))
        self.assertEqual(lines[0]["limit"], "40000-40007")


if __name__ == "__main__":
    unittest.main()
