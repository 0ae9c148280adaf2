"""The cluster page in a real browser: Chromium, driven by Playwright, before real routers and mock workers.

Needs the Python package `playwright` and Debian's `chromium` (or SMG_CHROMIUM, the path of another build). The suite is skipped
without them. SMG_PAGE_SCREENSHOTS names a folder for pictures at both widths and in both schemes.
"""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import sys
import threading
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "sdk"))

from support import Process, Router, binary, eventually, mock_workers  # noqa: E402

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    sync_playwright = None

CHROMIUM = os.environ.get("SMG_CHROMIUM") or shutil.which("chromium")
SCREENSHOTS = os.environ.get("SMG_PAGE_SCREENSHOTS")
# How long the page may take to show something, in milliseconds. The machine may be busy.
PATIENCE = 30_000
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MARKUP = "<script>window.ran = true</script><img src=x onerror='window.ran = true'>"
NOBODY = "http://127.0.0.1:9"


class MeshRouter(Router):
    """A router of a cluster on this machine."""

    def __init__(self, name, workers, peers, *flags):
        mesh = ["--enable-mesh", "--mesh-server-name", name, "--mesh-host", "127.0.0.1", "--mesh-port", "0"]
        if peers:
            mesh += ["--mesh-peer-urls", ",".join(peers)]
        listen = ["--host", "127.0.0.1", "--port", "0", "--prometheus-port", "0", "--drain-settle-secs", "0"]
        Process.__init__(self, [binary(), *listen, *mesh, *flags, "--log-json", "--worker-urls", *workers])
        self.url = "http://" + json.loads(self.find(r'"message":"serving"').string)["address"]
        events = (json.loads(line) for line in self.lines if line.startswith("{"))
        self.mesh = next(event["address"] for event in events if event.get("message") == "mesh")
        self.name = name


def cluster(count, workers):
    """Routers that know each other."""
    routers = []
    for at in range(count):
        routers.append(MeshRouter(f"router-{at + 1}", workers, [router.mesh for router in routers[:1]]))
    for router in routers:
        eventually(lambda: router.get("/ha/status")["alive_count"] == count, f"{router.name} knows all routers")
    return routers


class PrefixProxy(BaseHTTPRequestHandler):
    """Serves a router below a prefix of the path, as a reverse proxy does; answers 502 while there is no router."""

    protocol_version = "HTTP/1.1"
    PREFIX = "/some/prefix"

    def log_message(self, *_):
        pass

    def answer(self):
        try:
            self.forward()
        except (OSError, http.client.HTTPException):
            with contextlib.suppress(OSError):
                self.send_response(502)
                self.send_header("content-length", "0")
                self.end_headers()
        self.close_connection = True

    def forward(self):
        if not self.path.startswith(self.PREFIX + "/"):
            raise OSError("outside the prefix")
        router = http.client.HTTPConnection(self.server.router, timeout=60)
        with contextlib.closing(router):
            length = int(self.headers.get("content-length") or 0)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            router.request(self.command, self.path[len(self.PREFIX):], self.rfile.read(length), headers)
            answer = router.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("connection", "close")
            self.end_headers()
            while piece := answer.read1(65536):
                self.wfile.write(piece)
                self.wfile.flush()

    do_GET = do_POST = do_DELETE = answer


class FailingWorker(BaseHTTPRequestHandler):
    """A worker whose errors contain markup."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        body = json.dumps({"error": {"message": MARKUP}}).encode()
        # A router that is killed takes no answer.
        with contextlib.suppress(OSError):
            self.send_response(500)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


def serve(handler):
    """A server in a thread of its own, on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@unittest.skipUnless(sync_playwright and CHROMIUM, "needs the Python package playwright, and chromium")
class Page(unittest.TestCase):
    """A browser, and helpers for its pages."""

    @classmethod
    def setUpClass(cls):
        playwright = sync_playwright().start()
        cls.addClassCleanup(playwright.stop)
        cls.browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        cls.addClassCleanup(cls.browser.close)

    def open(self, url, viewport=WIDE, scheme="light"):
        """Opens a page. What it says on the console about its policy, and errors of its script, fail the test at its end."""
        context = self.browser.new_context(viewport=viewport, color_scheme=scheme)
        self.addCleanup(context.close)
        context.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page = context.new_page()
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("console", lambda line: wrong.append(line.text) if re.search("policy|trusted", line.text, re.I) else None)
        self.addCleanup(lambda: self.assertEqual(wrong, []))
        page.goto(url)
        return page


class TestCluster(Page):
    """Three routers, and workers of all kinds."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        processes = contextlib.ExitStack()
        cls.addClassCleanup(processes.close)

        def running(process):
            processes.callback(process.kill)
            return process

        good, workers = mock_workers(2, "--model", "llama-3.1-8b")
        running(good)
        hostile, named = mock_workers(1, "--model", MARKUP)
        running(hostile)
        failing = serve(FailingWorker)
        processes.callback(failing.shutdown)
        cls.failing = f"http://127.0.0.1:{failing.server_port}"
        cls.routers = cluster(3, [*workers, *named, cls.failing, NOBODY])
        for router in cls.routers:
            running(router)
        cls.router = cls.routers[0]
        cls.router.ask("PUT", "/ha/rate-limits/tenants", {"match": {"tenant": "*"}, "requests": 600, "window": "1m"})
        cls.router.ask("PUT", "/ha/policies/llama-3.1-8b", {"policy": "least_load"})
        cls.router.ask("POST", f"/workers/{cls.id_of(workers[1])}/override", {"healthy": True, "reason": MARKUP})
        request = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "Hello " * 200}]}
        for _ in range(6):
            cls.router.ask("POST", "/v1/chat/completions", request)

    @classmethod
    def id_of(cls, url):
        listed = lambda: [worker["id"] for worker in cls.router.get("/workers")["workers"] if worker["spec"]["url"] == url]  # noqa: E731
        eventually(listed, f"{url} is registered")
        return listed()[0]

    def test_everything_is_shown_and_markup_of_others_stays_text(self):
        page = self.open(self.router.url + "/ui")
        expect(page.locator("#routers tbody tr")).to_have_count(3)
        row = page.locator("#views tbody tr", has_text="router-2").first
        expect(row).to_contain_text("itself ALIVE")
        expect(row.locator("td").first).to_contain_text("ALIVE")
        expect(page.locator("#workers tbody tr")).to_have_count(5)
        for url, cause in ((NOBODY, "connection_refused"), (self.failing, "500")):
            row = page.locator("#workers tbody tr", has_text=url)
            expect(row).to_contain_text(cause)
            expect(row).to_contain_text("seen by router-")
        expect(page.locator("#workers")).to_contain_text(MARKUP)
        expect(page.locator("#workers tbody tr", has_text="llama").first.locator("td").nth(5)).to_contain_text("%")
        expect(page.locator("#policies tbody tr", has_text="llama")).to_contain_text("an administrator")
        expect(page.locator("#limits tbody tr")).to_contain_text("600 requests / 60 s")
        expect(page.locator("#leases tbody tr")).to_contain_text("router-")
        expect(page.locator("#stores tbody tr", has_text="workers")).to_contain_text("equal on 2")
        expect(page.locator("#configuration tbody tr", has_text="enable-mesh")).to_contain_text("flag --enable-mesh")
        expect(page.locator("#events h2")).to_contain_text("live")
        page.get_by_role("button", name=NOBODY).click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("nothing listens on port 9")
        expect(dialog).to_contain_text("read-only without an admin key")
        page.keyboard.press("Escape")
        for worker in page.locator("#workers tbody button").all():
            worker.click()
            expect(dialog).to_contain_text("Spec")
            page.keyboard.press("Escape")
        self.assertEqual(page.locator("main script, main img, dialog script, dialog img").count(), 0)
        self.assertTrue(page.evaluate("window.ran === undefined"))

    def test_tables_are_sorted_and_filtered_by_keyboard(self):
        page = self.open(self.router.url + "/ui")
        expect(page.locator("#workers tbody tr")).to_have_count(5)
        page.keyboard.press("Tab")
        self.assertEqual(page.evaluate("document.activeElement.className"), "skip")
        page.keyboard.press("Enter")
        self.assertEqual(page.evaluate("document.activeElement.id"), "main")
        head = page.get_by_role("columnheader", name="State", exact=True).last
        head.get_by_role("button").focus()
        for order in ("ascending", "descending"):
            page.keyboard.press("Enter")
            expect(head).to_have_attribute("aria-sort", order)
            states = [cell.inner_text().split()[0] for cell in page.locator("#workers tbody td:nth-child(2)").all()]
            self.assertEqual(states, sorted(states, reverse=order == "descending"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        self.assertNotIn(outline, ("none", ""), "the focus is visible")
        page.get_by_label("Filter workers").focus()
        page.keyboard.type("refused 127.0.0.1:9")
        expect(page.locator("#workers tbody tr")).to_have_count(1)
        page.keyboard.press("Tab")
        self.assertEqual(page.evaluate("document.activeElement.getAttribute('role')"), "region", "the box can be scrolled")
        button = page.get_by_role("button", name=NOBODY)
        button.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(button).to_be_focused()

    def test_texts_have_contrast_and_the_page_fits_its_window(self):
        for scheme in ("light", "dark"):
            for name, viewport in (("wide", WIDE), ("narrow", NARROW)):
                with self.subTest(scheme=scheme, window=name):
                    page = self.open(self.router.url + "/ui", viewport, scheme)
                    expect(page.locator("#workers tbody tr")).to_have_count(5)
                    expect(page.locator("#views tbody")).to_contain_text("itself ALIVE")
                    expect(page.locator("#configuration tbody")).to_contain_text("enable-mesh")
                    self.assertEqual(page.evaluate(LOW_CONTRAST), [])
                    self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), viewport["width"])
                    if SCREENSHOTS:
                        page.screenshot(path=f"{SCREENSHOTS}/{scheme}-{name}.png", full_page=True)
                    page.get_by_role("button", name=NOBODY).click()
                    expect(page.get_by_role("dialog")).to_be_visible()
                    self.assertEqual(page.evaluate(LOW_CONTRAST), [])
                    if SCREENSHOTS:
                        page.screenshot(path=f"{SCREENSHOTS}/{scheme}-{name}-worker.png")
                    page.context.close()

    def test_the_page_works_behind_a_prefix_and_says_when_the_router_is_gone(self):
        proxy = serve(PrefixProxy)
        self.addCleanup(proxy.shutdown)
        proxy.router = self.router.url.removeprefix("http://")
        page = self.open(f"http://127.0.0.1:{proxy.server_port}{PrefixProxy.PREFIX}/ui")
        expect(page.locator("#workers tbody tr")).to_have_count(5)
        expect(page.locator("#events h2")).to_contain_text("live")
        proxy.router = "127.0.0.1:9"
        expect(page.locator("#outage")).to_contain_text("does not answer: status 502")
        expect(page.locator("#workers tbody tr")).to_have_count(5)
        expect(page.locator("#freshness")).to_have_class(re.compile("late"))
        proxy.router = self.router.url.removeprefix("http://")
        page.get_by_role("button", name=re.compile("Try now")).click()
        expect(page.locator("#outage")).to_be_hidden()

    def test_many_rows_are_updated_in_place(self):
        """200 workers and 9 routers: what does not change stays the same elements, and an update is short."""
        page = self.open("about:blank")
        names = [f"router-{at}" for at in range(1, 10)]
        worker = self.router.get("/workers")["workers"][0]
        observed = self.router.get("/ha/workers")["workers"][0]
        view = self.router.get("/ha/view")
        status = self.router.get("/ha/status")
        peer = view["health"]["peers"][0]
        status["nodes"] = [{**status["nodes"][0], "name": name} for name in names]
        view["health"]["peers"] = [{**peer, "name": name} for name in names[1:]]
        seen = next(iter(observed["observations"].values()))
        many = {
            "/ha/status": status,
            "/ha/views": {"node_name": names[0], "views": {name: {"url": None, "view": view} for name in names}},
            "/workers": {"workers": [{**worker, "id": f"w-{at}", "spec": {"url": f"http://10.0.0.{at}:8000"}} for at in range(200)]},
            "/ha/workers": {"workers": [{**observed, "id": f"w-{at}", "observations": {name: {**seen, "in_flight": at} for name in names}} for at in range(200)]},
        }
        for path, document in many.items():
            page.route(self.router.url + path, lambda route, _, document=document: route.fulfill(json=document))
        page.goto(self.router.url + "/ui")
        expect(page.locator("#workers tbody tr")).to_have_count(200)
        expect(page.locator("#views tbody tr")).to_have_count(9)
        page.evaluate("document.querySelectorAll('#workers tbody tr').forEach((row) => { row.kept = true; })")
        took = page.evaluate("() => { const began = performance.now(); for (let at = 0; at < 10; at += 1) draw(); return (performance.now() - began) / 10; }")
        kept = page.evaluate("[...document.querySelectorAll('#workers tbody tr')].filter((row) => row.kept).length")
        self.assertEqual(kept, 200)
        print(f"an update of 200 workers and 9 routers takes {took:.0f} ms")
        self.assertLess(took, 500)


    def test_the_form_to_explain_is_shown_only_if_the_router_has_the_route(self):
        page = self.open("about:blank")
        path = self.router.url + "/ha/explain"
        page.route(path, lambda route: route.fulfill(status=404, json={"error": {"message": "no such route"}}))
        page.goto(self.router.url + "/ui")
        expect(page.locator("#workers tbody tr")).to_have_count(5)
        expect(page.locator("#explain")).to_be_hidden()
        page.unroute(path)
        candidates = [{"url": "http://10.0.0.1:8000", "cost": 0.5}, {"url": MARKUP, "cost": 0.25}]
        page.route(path, lambda route: route.fulfill(json={"model": "m", "candidates": candidates}))
        page.reload()
        expect(page.get_by_label("Body of the request")).to_have_value(re.compile("llama|script"))
        page.get_by_role("button", name="Explain").click()
        table = page.get_by_role("table", name="Candidates")
        expect(table.locator("tbody tr")).to_have_count(2)
        table.get_by_role("button", name="cost").click()
        expect(table.locator("tbody tr").first).to_contain_text(MARKUP)


class TestKilledRouter(Page):
    """One of three routers is killed while the page is open."""

    def test_a_killed_router_becomes_suspected_and_down_without_a_reload(self):
        workers, urls = mock_workers(1)
        self.addCleanup(workers.kill)
        routers = cluster(3, urls)
        for router in routers:
            self.addCleanup(router.kill)
        page = self.open(routers[0].url + "/ui")
        row = page.locator("#routers tbody tr", has_text="router-3")
        expect(row).to_contain_text("ALIVE")
        page.evaluate("window.same = true")
        shown = {}
        # The page notes each state itself, so that none is missed between two looks.
        page.evaluate(
            """() => {
                window.states = [];
                const note = () => {
                    const row = [...document.querySelectorAll('#routers tbody tr')].find((one) => one.textContent.startsWith('router-3'));
                    const state = row?.querySelector('td .chip').textContent;
                    if (state !== window.states.at(-1)?.state) window.states.push({ state, at: performance.now() });
                };
                new MutationObserver(note).observe(document.querySelector('#routers'), { childList: true, subtree: true, characterData: true });
            }"""
        )
        began = page.evaluate("performance.now()")
        routers[2].kill()
        down_at = None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            states = page.evaluate("window.states")
            nodes = {node["name"]: node["status"] for node in routers[0].get("/ha/status")["nodes"]}
            if down_at is None and nodes.get("router-3") == "DOWN":
                down_at = page.evaluate("performance.now()")
            shown = {one["state"]: one["at"] for one in states}
            if "DOWN" in shown:
                break
            page.wait_for_timeout(50)
        self.assertEqual([one["state"] for one in states if one["state"] != "ALIVE"], ["SUSPECTED", "DOWN"])
        took = (shown["DOWN"] - began) / 1000
        print(f"SUSPECTED after {(shown['SUSPECTED'] - began) / 1000:.1f} s, DOWN after {took:.1f} s")
        # A busy machine may be late to call it DOWN; the page is not.
        known = ((down_at or began) - began) / 1000
        self.assertLess(took, max(8.0, known + 3.0))
        self.assertTrue(page.evaluate("window.same"), "the page was not loaded again")
        expect(page.locator("#attention")).to_contain_text("is DOWN")
        expect(page.locator("#events tbody")).to_contain_text("SUSPECTED → DOWN")
        expect(page.locator("#views tbody tr", has_text="router-3").last).to_contain_text("no answer")


class TestKey(Page):
    """A router with keys."""

    def test_the_page_asks_for_a_key_and_acts_with_it(self):
        workers, urls = mock_workers(2)
        self.addCleanup(workers.kill)
        router = Router(urls, "--admin-api-key", "1:root:admin:the-key,2:reader:user:reads", "--api-key", "client")
        self.addCleanup(router.kill)
        page = self.open(router.url + "/ui")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("asks for a key")
        for key, answer in (("wrong", "refuses this key"), ("ü", "visible ASCII"), ("client", "refuses this key")):
            dialog.get_by_label("Key", exact=True).fill(key)
            page.keyboard.press("Enter")
            expect(page.locator("#key-error")).to_contain_text(answer)
        dialog.get_by_label("Key", exact=True).fill("reads")
        page.keyboard.press("Enter")
        expect(page.locator("#workers tbody tr")).to_have_count(2)
        expect(page.locator("#events h2")).to_contain_text("live")
        page.get_by_role("button", name=urls[0]).click()
        dialog.get_by_role("button", name="Drain", exact=True).click()
        expect(dialog).to_contain_text("refused. this needs an admin key of the role admin")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Admin key").click()
        dialog.get_by_label("Key", exact=True).fill("the-key")
        dialog.get_by_role("button", name="Use the key").click()
        self.act(page, urls)
        self.assertEqual(page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]"), [0, 0, ""])
        page.get_by_role("button", name="Admin key").click()
        dialog.get_by_label("Key", exact=True).fill("the-key")
        dialog.get_by_label("Keep it").check()
        page.keyboard.press("Enter")
        expect(dialog).to_have_count(0)
        page.reload()
        expect(page.locator("#workers tbody tr")).to_have_count(1)
        self.assertNotIn("the-key", page.url)

    def act(self, page, urls):
        dialog = page.get_by_role("dialog")
        row = page.locator("#workers tbody tr", has_text=urls[0])
        row.get_by_role("button").click()
        dialog.get_by_role("button", name="Drain", exact=True).click()
        expect(row).to_contain_text("draining")
        dialog.get_by_role("button", name="Undrain").click()
        expect(row).to_contain_text("ready")
        dialog.get_by_label("Reason").fill(MARKUP)
        dialog.get_by_role("button", name="Override as unhealthy").click()
        expect(row).to_contain_text("override: unhealthy")
        expect(dialog).to_contain_text(MARKUP)
        dialog.get_by_role("button", name="Lift the override").click()
        expect(row).not_to_contain_text("override")
        self.assertFalse(dialog.get_by_text("Remove it from all routers?").is_visible())
        dialog.get_by_role("button", name="Remove…").click()
        dialog.get_by_role("button", name="Keep it").click()
        expect(row).to_have_count(1)
        dialog.get_by_role("button", name="Remove…").click()
        dialog.get_by_role("button", name="Remove", exact=True).click()
        expect(page.locator("#workers tbody tr")).to_have_count(1)
        page.keyboard.press("Escape")


# The texts whose contrast with what is behind them is below 4.5:1 (WCAG 2.2, success criterion 1.4.3).
LOW_CONTRAST = """() => {
    const channels = (color) => color.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const [r, g, b, a = 1] = channels(getComputedStyle(at).backgroundColor);
            if (a === 1) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const low = [];
    let seen = 0;
    const top = document.querySelector('dialog[open]') || document.body;
    const walker = document.createTreeWalker(top, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || node.closest('script, style, dialog:not([open])') || !node.checkVisibility()) continue;
        seen += 1;
        const [a, b] = [luminance(channels(getComputedStyle(node).color)), luminance(behind(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) low.push(`${ratio.toFixed(2)}: ${walker.currentNode.textContent.trim().slice(0, 40)} (${node.className})`);
    }
    if (seen < 20) low.push(`only ${seen} texts`);
    return low;
}"""


if __name__ == "__main__":
    unittest.main()
