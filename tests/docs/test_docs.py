"""The documentation: links lead somewhere, commands work, configuration is accepted.

Each fenced block of commands (`sh`, `python`) says in its first line how it is tested:

    ```sh test          run, in the order of the document; the commands must succeed
    ```sh background    each command is started and goes on until the document ends
    ```sh cluster       needs machines, a Kubernetes cluster or root: its flags and files are checked, it is not run
    ```sh build         for developers with a toolchain: crates, targets and files are checked, it is not run

Documents run in a network of their own, in which `gpu-1` to `gpu-3` are mock workers with the model YOUR-MODEL, `node1` to
`node3` are the routers of a cluster, and ROUTER is the first one. `toml` blocks must be accepted by `smg check-config`.
"""

import ctypes
import functools
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
import unittest
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "sdk"))

from support import Process, binary, environment, eventually  # noqa: E402

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "k8s/**/*.md")
    for path in ROOT.glob(pattern)
)
KINDS = ("test", "background", "cluster", "build")
WORKERS = ("gpu-1", "gpu-2", "gpu-3")
NODES = ("node1", "node2", "node3")
# The names of a document's network: loopback addresses.
ADDRESSES = {name: f"127.0.1.{nth}" for nth, name in enumerate(WORKERS, 1)}
ADDRESSES |= {name: f"127.0.2.{nth}" for nth, name in enumerate(NODES, 1)}
ADDRESSES |= {"router": ADDRESSES["node1"], "new": ADDRESSES["gpu-3"]}


def name_of(path):
    return str(path.relative_to(ROOT))


def fences(path):
    """The fenced blocks of a document: (number of the first line, words of the first line, text)."""
    found, block = [], None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if block is None and (opening := re.match(r"^(\s*)```(.*)$", line)):
            block = (number, opening[2].split(), [], opening[1])
        elif block and line.strip() == "```":
            found.append((block[0], block[1], "".join(f"{text}\n" for text in block[2])))
            block = None
        elif block:
            block[2].append(line.removeprefix(block[3]))
    if block:
        raise AssertionError(f"{name_of(path)}:{block[0]}: the block never ends")
    return found


def prose(path):
    """A document without its fenced blocks and inline code."""
    text = re.sub(r"^(\s*)```.*?^\s*```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "`code`", text, flags=re.DOTALL)


def links(path):
    """The targets of a document's links and images."""
    text = prose(path)
    yield from re.findall(r"\]\(<?([^()<>\s]+(?:\([^()\s]*\))?)>?(?:\s+\"[^\"]*\")?\)", text)
    yield from re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, re.MULTILINE)


@functools.cache
def anchors(path):
    """The anchors of a document's headings, as GitHub and mdBook make them."""
    found = set()
    text = re.sub(r"^(\s*)```.*?^\s*```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        nth = 0
        while (unique := f"{anchor}-{nth}" if nth else anchor) in found:
            nth += 1
        found.add(unique)
    return found


def broken(path, target):
    """Why a link leads nowhere, or None. Links to other hosts are not followed."""
    address = urllib.parse.urlsplit(target)
    if address.scheme or address.netloc:
        return None
    to = (path.parent / urllib.parse.unquote(address.path)).resolve() if address.path else path
    if not to.exists() or not to.is_relative_to(ROOT):
        return "there is no such file"
    if address.fragment and (to.suffix != ".md" or address.fragment not in anchors(to)):
        return "there is no such heading"
    return None


class Links(unittest.TestCase):
    def test_every_link_leads_somewhere(self):
        checked, wrong = 0, []
        for path in DOCUMENTS:
            for target in links(path):
                checked += 1
                if why := broken(path, target):
                    wrong.append(f"{name_of(path)}: {target}: {why}")
        self.assertEqual(wrong, [])
        self.assertGreater(checked, 50)

    def test_a_wrong_link_would_be_found(self):
        readme = ROOT / "README.md"
        self.assertEqual(broken(readme, "docs/absent.md"), "there is no such file")
        self.assertEqual(broken(readme, "docs/limits.md#absent"), "there is no such heading")
        self.assertEqual(broken(readme, "#absent"), "there is no such heading")
        self.assertIsNone(broken(readme, "#quick-start"))
        self.assertIsNone(broken(readme, "https://example.com/"))


def commands(text):
    """The commands of a block as words, one command a line; a pipeline counts as one for each of its parts."""
    for line in text.replace("\\\n", " ").splitlines():
        parts = [[]]
        for word in shlex.split(line, comments=True):
            if word in ("|", "&&", ";", "||"):
                parts.append([])
            else:
                parts[-1].append(word)
        yield from (part for part in parts if part)


@functools.cache
def help_of(*subcommands):
    done = subprocess.run([binary(), *subcommands, "--help"], capture_output=True, text=True, env=environment())
    return done.stdout if done.returncode == 0 else None


def wrong_flags(words):
    """What is wrong with a command of smg: flags and subcommands that do not exist."""
    subcommands = []
    for word in words[1:]:
        if not re.fullmatch(r"[a-z][a-z-]*", word) or help_of(*subcommands, word) is None:
            break
        subcommands.append(word)
    known = set(re.findall(r"--[a-z][a-z0-9-]*", help_of(*subcommands)))
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    return [f"smg {' '.join(subcommands)} has no {flag}" for flag in sorted(flags - known)]


def wrong_names(words):
    """What is wrong with a command that is not run: flags of smg, files of this repository, crates and targets of cargo."""
    if words[0] == "smg":
        return wrong_flags(words)
    wrong = []
    for word in words:
        inside = re.match(r"(?:deploy|k8s|docs|tests|grafana|\.ci)/[\w./-]*", word)
        if inside and not (ROOT / inside[0]).exists():
            wrong.append(f"there is no {inside[0]}")
    if words[0] == "cargo":
        crates = {tomllib.loads(p.read_text())["package"]["name"] for p in [ROOT / "Cargo.toml", *ROOT.glob("crates/*/Cargo.toml")]}
        aliases = tomllib.loads((ROOT / ".cargo" / "config.toml").read_text())["alias"]
        known = {"build", "run", "test", "fmt", "install", "deny", "doc", "clippy", *aliases}
        if words[1] not in known:
            wrong.append(f"there is no cargo {words[1]}")
        for flag, name in zip(words, words[1:]):
            if flag in ("-p", "--package") and name not in crates:
                wrong.append(f"there is no crate {name}")
        if "--" in words and words[1] == "run":
            wrong += wrong_flags(["smg", *words[words.index("--") + 1 :]])
    return wrong


class Commands(unittest.TestCase):
    def test_every_block_of_commands_says_how_it_is_tested(self):
        wrong = []
        for path in DOCUMENTS:
            for number, words, text in fences(path):
                place = f"{name_of(path)}:{number}"
                if words[:1] in (["sh"], ["python"], ["bash"], ["console"], ["shell"]):
                    if words[0] not in ("sh", "python") or len(words) != 2 or words[1] not in KINDS:
                        wrong.append(f"{place}: ```{' '.join(words)} is not `sh` or `python` and one of {', '.join(KINDS)}")
                elif not words and re.search(r"^\s*(smg|cargo|curl|kubectl|tests/)\b", text, re.MULTILINE):
                    wrong.append(f"{place}: a block of commands without `sh`")
        self.assertEqual(wrong, [])

    def test_what_is_not_run_has_right_names(self):
        wrong = []
        for path in DOCUMENTS:
            for number, words, text in fences(path):
                if words[:1] == ["sh"] and words[1:] in (["cluster"], ["build"]):
                    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
                    problems = [checked.stderr] if checked.returncode else []
                    for command in commands(text):
                        problems += wrong_names(command)
                    wrong += [f"{name_of(path)}:{number}: {problem}" for problem in problems]
        self.assertEqual(wrong, [])

    def test_wrong_names_would_be_found(self):
        self.assertEqual(wrong_names(["smg", "--polity", "x"]), ["smg  has no --polity"])
        self.assertEqual(wrong_names(["smg", "mesh", "status", "--porter", "x"]), ["smg mesh status has no --porter"])
        self.assertEqual(wrong_names(["kubectl", "apply", "-k", "k8s/overlays/none"]), ["there is no k8s/overlays/none"])
        self.assertEqual(wrong_names(["cargo", "test", "-p", "none"]), ["there is no crate none"])

    def test_configuration_is_accepted(self):
        checked = 0
        for path in DOCUMENTS:
            for number, words, text in fences(path):
                if words[:1] == ["toml"]:
                    checked += 1
                    with self.subTest(f"{name_of(path)}:{number}"), tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                        file.write(text)
                        file.flush()
                        named = dict.fromkeys(re.findall(r'_env = "(\w+)"', text), "secret")
                        command = [binary(), "check-config", "--config", file.name]
                        done = subprocess.run(command, capture_output=True, text=True, env=environment() | named)
                        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreaterEqual(checked, 2)


def enter_own_network(hosts):
    """Moves this process into a network with nothing but loopback, in which names have our addresses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000 | 0x40000000):  # CLONE_NEWNS, CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


MISSING = [tool for tool in ("ip", "mount", "bash", "curl", "jq") if not shutil.which(tool)]


@unittest.skipIf(os.geteuid() != 0 or MISSING, f"needs root and {', '.join(MISSING) or 'nothing else'}")
class Sessions(unittest.TestCase):
    """Runs the documents. The process does not leave its network afterwards, so this class must come last."""

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.directory = pathlib.Path(directory.name)
        hosts = cls.directory / "hosts"
        lines = [f"{address} {name}\n" for name, address in ADDRESSES.items()]
        hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))
        enter_own_network(str(hosts))
        bin_directory = cls.directory / "bin"
        bin_directory.mkdir()
        (bin_directory / "smg").symlink_to(binary())
        cls.environment = environment() | {"PATH": f"{bin_directory}:{os.environ['PATH']}", "HOME": str(cls.directory)}
        for name in WORKERS:
            flags = ["--host", ADDRESSES[name], "--port", "8000", "--model", "YOUR-MODEL"]
            worker = Process([binary(), "mock-worker", *flags])
            cls.addClassCleanup(worker.stop)
            worker.find("serves")

    @classmethod
    def start_routers(cls):
        """The cluster that some documents take for granted."""
        for name in NODES:
            address = ADDRESSES[name]
            listen = ["--host", address, "--prometheus-port", "0", "--mesh-host", address]
            mesh = ["--enable-mesh", "--mesh-server-name", name, "--mesh-peer-urls", "node1,node2,node3"]
            router = Process([binary(), *listen, *mesh, "--drain-settle-secs", "0", "--worker-urls", *urls(WORKERS)])
            cls.addClassCleanup(router.stop)
            eventually(lambda: is_open(address, 8000), f"{name} is up")
        for name in NODES:
            cls.run_text(f"until curl -fsS http://{name}:8000/readiness >/dev/null; do sleep 0.1; done")
        cls.run_text("until [ $(curl -fsS http://node1:8000/ha/status | jq '.nodes | length') = 3 ]; do sleep 0.1; done")

    @classmethod
    def run_text(cls, text, interpreter=("bash", "-euo", "pipefail")):
        done = subprocess.run(
            [*interpreter, "-"] if interpreter[0] != "bash" else [*interpreter, "-s"],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            cwd=ROOT,
            env=cls.environment,
        )
        return done.returncode, done.stdout

    def start(self, words):
        """A command of a `background` block; waits until it serves."""
        process = Process(["env", f"PATH={self.environment['PATH']}", *words])
        self.addCleanup(process.stop)
        process.find(r"serving|serves")
        if "mock-worker" not in words:
            port = words[words.index("--port") + 1]
            self.run_text(f"until curl -fsS http://localhost:{port}/readiness >/dev/null; do sleep 0.1; done")

    def run_document(self, path):
        for number, words, text in fences(path):
            place = f"{name_of(path)}:{number}"
            if words == ["sh", "background"]:
                for command in commands(text):
                    self.start(command)
            elif words == ["sh", "test"]:
                # `curl` without this flag succeeds whatever the status is.
                status, output = self.run_text('curl() { command curl --fail-with-body --silent --show-error "$@"; }\n' + text)
                self.assertEqual(status, 0, f"{place}:\n{text}\n{output}")
            elif words == ["python", "test"]:
                status, output = self.run_text(text, (sys.executable,))
                self.assertEqual(status, 0, f"{place}:\n{output}")

    def test_documents(self):
        self.start_routers()
        # Would a failure be noticed?
        self.assertNotEqual(self.run_text("false\ntrue")[0], 0)
        self.assertNotEqual(self.run_text("false | true")[0], 0)
        ran = 0
        for path in DOCUMENTS:
            kinds = [words for _, words, _ in fences(path) if words[1:] in (["test"], ["background"])]
            if kinds and self.may_run(kinds):
                ran += 1
                with self.subTest(name_of(path)):
                    try:
                        self.run_document(path)
                    finally:
                        self.doCleanups()
        self.assertGreater(ran, 3)

    def may_run(self, kinds):
        if ["python", "test"] not in kinds:
            return True
        found = subprocess.run([sys.executable, "-c", "import openai"], capture_output=True).returncode == 0
        if not found:
            print("skipped: a document with Python, because openai is not installed", file=sys.stderr)
        return found


def urls(names):
    return [f"http://{name}:8000" for name in names]


def is_open(address, port):
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    unittest.main()
