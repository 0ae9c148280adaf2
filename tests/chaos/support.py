"""What the chaos tests stand on: real routers, each on a machine of its own.

A machine is a network namespace with one address, a hosts file and a host name; a switch (a bridge in a further
namespace) connects those of a test. Nothing exists outside these namespaces, and every test has its own, so that parallel
runs don't meet. All of it is torn down after each test; what a killed run left behind, the next run sweeps away.

SMG_BIN names the binary; without it the debug build, else the release build, is taken. SMG_CHAOS_LONG=1 gives soaks the
lengths that the requirements ask for, instead of those for every day.
"""

import contextlib
import ctypes
import functools
import http.client
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from datetime import datetime

ROOT = pathlib.Path(__file__).resolve().parents[2]
LONG = os.environ.get("SMG_CHAOS_LONG") == "1"

MESH = 39527
API = 8000
PREFIX = "smgchaos"
NET = "10.77.0"
CLONE_NEWNET = 0x4000_0000

# Lines of each log that a failure shows.
LOG_LINES = 120


def binary():
    """The smg binary."""
    named = os.environ.get("SMG_BIN")
    built = [ROOT / "target" / profile / "smg" for profile in ("debug", "release")]
    for path in [pathlib.Path(named).resolve()] if named else built:
        if path.is_file():
            return str(path)
    raise FileNotFoundError("no smg binary: set SMG_BIN, or run cargo build")


def environment(**more):
    """The environment without variables that would configure what is under test, and without proxies."""
    ours = re.compile(r"SMG_.*|RUST_LOG|POD_IP|.*_proxy|.*_PROXY")
    kept = {name: value for name, value in os.environ.items() if not ours.fullmatch(name)}
    return kept | more


def sh(*words, check=True):
    """Runs a command to its end and returns its output."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@functools.cache
def impossible():
    """Why namespaces can't be made here; None if they can."""
    if os.geteuid():
        return "needs root, for network namespaces"
    for tool in ("ip", "iptables", "unshare", "setpriv"):
        if not shutil.which(tool):
            return f"needs {tool}"
    name = f"{PREFIX}-{os.getpid()}-try"
    try:
        sh("ip", "netns", "add", name)
        try:
            sh("ip", "netns", "exec", name, "iptables", "-w", "5", "-A", "INPUT", "-s", "192.0.2.1", "-j", "DROP")
        finally:
            sh("ip", "netns", "del", name, check=False)
    except OSError as error:
        return f"network namespaces are not permitted here: {error}"
    return None


def sweep():
    """Removes namespaces of runs that ended without tearing down."""
    for line in sh("ip", "netns", "list", check=False).splitlines():
        name = line.split()[0] if line.split() else ""
        owner = re.fullmatch(PREFIX + r"-(\d+)-.*", name)
        if owner and not os.path.exists(f"/proc/{owner[1]}"):
            remove_namespace(name)


def remove_namespace(name):
    for pid in sh("ip", "netns", "pids", name, check=False).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    sh("ip", "netns", "del", name, check=False)
    shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


# --- waiting and telling ---------------------------------------------------------------------------------------------


def look(read):
    """What `read` returns, or the error that it raised: routers are allowed to be silent."""
    try:
        return read()
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return error


def eventually(what, read, holds, within):
    """Waits until `holds(read())`; returns how long that took, in seconds."""
    began = time.monotonic()
    while True:
        seen = look(read)
        took = time.monotonic() - began
        if not isinstance(seen, Exception) and holds(seen):
            return took
        if took > within:
            raise AssertionError(f"{what}: not within {within} s; last seen: {shown(seen)}")
        time.sleep(0.02)


def always(what, read, holds, seconds, every=0.1):
    """Fails as soon as `holds(read())` is not so, for some seconds."""
    began = time.monotonic()
    while (took := time.monotonic() - began) < seconds:
        seen = look(read)
        if isinstance(seen, Exception) or not holds(seen):
            raise AssertionError(f"{what}: not so after {took:.1f} s; seen: {shown(seen)}")
        time.sleep(every)


def shown(seen):
    text = repr(seen) if isinstance(seen, Exception) else json.dumps(seen, default=str)
    return text if len(text) < 4000 else text[:4000] + " …"


def quantile(values, share):
    """The smallest value that at least `share` of all are not above."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 1).__int__() - 1)]


def report(what, values, unit="s"):
    """Prints what was measured, with the load of the machine, for a number means nothing without it."""
    values = list(values)
    print(
        f"\n    measured: {what}: p50 {statistics.median(values):.3f} {unit}, max {max(values):.3f} {unit}"
        f" ({len(values)} values; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f})",
        file=sys.stderr,
        flush=True,
    )


# --- machines --------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(namespace):
    """This thread in another network namespace: sockets that it makes belong there for ever."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        if _libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
        try:
            yield
        finally:
            if _libc.setns(home.fileno(), CLONE_NEWNET):
                # Continuing in the wrong namespace would break the following tests.
                os.abort()


class Network:
    """The machines of one test and the switch between them."""

    _numbers = itertools.count(1)

    def __init__(self):
        self.id = f"{PREFIX}-{os.getpid()}-{next(self._numbers)}"
        self.directory = tempfile.mkdtemp(prefix=f"{self.id}-")
        self.machines = {}
        self.processes = []
        self._switch = f"{self.id}-switch"
        sh("ip", "netns", "add", self._switch)
        sh("ip", "-n", self._switch, "link", "add", "switch", "type", "bridge")
        sh("ip", "-n", self._switch, "link", "set", "switch", "up")

    def machine(self, name, names=None):
        """A further machine. `names`: what its hosts file holds, by name; otherwise all machines, as they come."""
        machine = Machine(self, name, f"{NET}.{len(self.machines) + 1}", names)
        self.machines[name] = machine
        self.tell_names()
        return machine

    def tell_names(self):
        everybody = {name: machine.address for name, machine in self.machines.items()}
        for machine in self.machines.values():
            machine.write_hosts(everybody if machine.names is None else machine.names)

    def close(self):
        for process in self.processes:
            process.end()
        for name in [machine.namespace for machine in self.machines.values()] + [self._switch]:
            remove_namespace(name)

    def dump_logs(self):
        for process in self.processes:
            lines = process.log().splitlines()
            print(f"\n--- {process} ({len(lines)} lines)", file=sys.stderr)
            if len(lines) > LOG_LINES:
                half = LOG_LINES // 2
                lines = lines[:half] + [f"… {len(lines) - LOG_LINES} lines …"] + lines[-half:]
            print("\n".join(lines), file=sys.stderr)


class Machine:
    """A namespace with an address."""

    def __init__(self, network, name, address, names):
        self.network = network
        self.name = name
        self.address = address
        self.names = names
        self.namespace = f"{network.id}-{name}"
        self._port = f"p{address.rsplit('.', 1)[1]}"
        sh("ip", "netns", "add", self.namespace)
        etc = pathlib.Path("/etc/netns") / self.namespace
        etc.mkdir(parents=True, exist_ok=True)
        # `ip netns exec` mounts these over those in /etc; without a name server, what is not in hosts does not exist.
        (etc / "hosts").touch()
        (etc / "resolv.conf").write_text("# none\n")
        self._hosts = etc / "hosts"
        switch = f"{network.id}-switch"
        sh("ip", "link", "add", "eth0", "netns", self.namespace, "type", "veth", "peer", "name", self._port, "netns", switch)
        sh("ip", "-n", switch, "link", "set", self._port, "master", "switch", "up")
        sh("ip", "-n", self.namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        sh("ip", "-n", self.namespace, "link", "set", "lo", "up")
        sh("ip", "-n", self.namespace, "link", "set", "eth0", "up")

    def __str__(self):
        return self.name

    def write_hosts(self, names):
        # In place: it is this very file that running processes have mounted.
        with open(self._hosts, "r+") as file:
            file.truncate()
            file.write("127.0.0.1 localhost\n")
            file.writelines(f"{address} {name}\n" for name, address in names.items())

    def run(self, *words, check=True):
        return sh("ip", "netns", "exec", self.namespace, *words, check=check)

    def socket(self):
        with inside(self.namespace):
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def connect(self, address, port, timeout=5.0):
        """A connection from this machine."""
        tcp = self.socket()
        tcp.settimeout(timeout)
        try:
            tcp.connect((address, port))
        except BaseException:
            tcp.close()
            raise
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tcp

    # --- faults of the network

    def _rule(self, *words):
        self.run("iptables", "-w", "5", *words)

    def deafen(self, *words):
        """Drops what comes in and fits, for example `-s`, address."""
        self._rule("-A", "INPUT", *words, "-j", "DROP")

    def mute(self, *words):
        """Drops what goes out and fits."""
        self._rule("-A", "OUTPUT", *words, "-j", "DROP")

    def heal(self):
        """Takes all faults away."""
        self._rule("-F", "INPUT")
        self._rule("-F", "OUTPUT")

    def cut_from(self, *others):
        """No packet between this machine and the others, in either direction."""
        for other in others:
            self.deafen("-s", other.address)
            self.mute("-d", other.address)

    def block_mesh(self):
        """No packet of the mesh port, in either direction."""
        for end in ("--dport", "--sport"):
            self.deafen("-p", "tcp", end, str(MESH))
            self.mute("-p", "tcp", end, str(MESH))

    def lose(self, share):
        """Loses a share of what comes in, by chance."""
        self.deafen("-i", "eth0", "-m", "statistic", "--mode", "random", "--probability", str(share))

    def block_stream(self, peer, call, ports):
        """Drops what this machine sends `peer` on streams of one kind: those that exist, by their ports here, and new
        ones, by the path of their first request."""
        for port in ports:
            self.mute("-p", "tcp", "-d", peer.address, "--sport", str(port))
        path = "|" + huffman(f"/smg.mesh.v1.Mesh/{call}").hex() + "|"
        match = ["-m", "string", "--algo", "bm", "--hex-string", path]
        self.mute("-p", "tcp", "-d", peer.address, "--dport", str(MESH), *match)


def huffman(text):
    """A text as HPACK writes it (RFC 7541, appendix B), without the last byte, which is padded. Only for the letters of
    the mesh's paths."""
    codes = {
        "/": "011000", ".": "010111", "1": "00001", "M": "1101000", "S": "1101110", "c": "00100", "e": "00101",
        "g": "100110", "h": "100111", "i": "00110", "m": "101001", "n": "101010", "s": "01000", "v": "1110111",
        "w": "1111000", "y": "1111010",
    }  # fmt: skip
    bits = "".join(codes[letter] for letter in text)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits) // 8 * 8, 8))


# --- processes -------------------------------------------------------------------------------------------------------


class Process:
    """A process on a machine, with its log in a file. Ended at the end, whatever happens."""

    def __init__(self, machine, *words, **variables):
        self.machine = machine
        self.words = words
        network = machine.network
        self._path = pathlib.Path(network.directory) / f"{len(network.processes)}-{machine.name}.log"
        # Each word replaces the process before it, so that the child is the program itself. It dies with the tests.
        as_host = ["unshare", "--uts", "sh", "-c", 'hostname "$1"; shift; exec "$@"', "sh", machine.name]
        with open(self._path, "wb") as log:
            self._child = subprocess.Popen(
                ["ip", "netns", "exec", machine.namespace, *as_host, "setpriv", "--pdeathsig", "KILL", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(**variables),
            )
        self._status = None
        network.processes.append(self)

    def __str__(self):
        return f"{self.machine.name}: {pathlib.PurePath(self.words[0]).name} {' '.join(self.words[1:])}"

    @property
    def pid(self):
        return self._child.pid

    def log(self):
        return self._path.read_text(errors="replace")

    def is_running(self):
        return self._child.poll() is None

    def signal(self, number):
        self._child.send_signal(number)

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    def kill(self):
        """Dies without a word; returns when, on the calendar."""
        self.signal(signal.SIGKILL)
        died = time.time()
        self._child.wait(timeout=10)
        return died

    def wait(self, within):
        """Its exit status."""
        return self._child.wait(timeout=within)

    def end(self):
        if self.is_running():
            self._child.kill()
            self._child.wait(timeout=10)

    def memory(self):
        """Resident bytes."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


class Answer:
    """An HTTP answer, read whole."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


def request(machine, address, method, path, document=None, port=API, timeout=5.0):
    """Asks from a machine."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    connection.sock = machine.connect(address, port, timeout)
    try:
        body = None if document is None else json.dumps(document)
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


class Router(Process):
    """A router. It is asked over its machine's loopback, which no fault of the network touches."""

    def __init__(self, machine, *flags, **variables):
        # A shell's words can start it too: then flags are what stands in the document.
        super().__init__(machine, *flags, **variables)
        self.started = time.time()

    def ask(self, method, path, document=None, timeout=5.0):
        return request(self.machine, "127.0.0.1", method, path, document, timeout=timeout)

    def get(self, path):
        answer = self.ask("GET", path)
        if answer.status != 200:
            raise OSError(f"GET {path}: {answer.status} {answer.body[:300]!r}")
        return answer.json()

    def status(self):
        return self.get("/ha/status")

    def health(self):
        return self.get("/ha/health")

    def states(self):
        """State by name, of all that are listed."""
        return {node["name"]: node["status"] for node in self.status()["nodes"]}

    def node(self, name):
        """What is listed under a name; None if nothing is."""
        found = [node for node in self.status()["nodes"] if node["name"] == name]
        if len(found) > 1:
            raise AssertionError(f"{name} is listed {len(found)} times: {found}")
        return found[0] if found else None

    def digests(self):
        return {name: store["digest"] for name, store in self.status()["stores"].items()}

    def metrics(self):
        """Value by metric and labels, exactly as written."""
        answer = self.ask("GET", "/metrics")
        lines = (line for line in answer.body.decode().splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def total(self, name, **labels):
        """Sum over all series of a metric that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            value
            for series, value in self.metrics().items()
            if series.split("{")[0] == name and all(label in series for label in wanted)
        )

    def records(self):
        """What it has logged, as documents; lines of another kind are left out."""
        for line in self.log().splitlines():
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def transitions(self, peer=None):
        """Changes of other routers' states as it saw them: time on the calendar, name, from, to."""
        found = []
        for record in self.records():
            fields = record.get("fields", record)
            if fields.get("message") == "the membership state of a router changed" and "peer" in fields:
                name = fields["peer"].split("@")[0].split("#")[0]
                if peer in (None, name):
                    found.append((moment(record), name, fields["from"], fields["to"]))
        return found


def moment(record):
    """A record's time on the calendar."""
    return datetime.fromisoformat(record["timestamp"].replace("Z", "+00:00")).timestamp()


class Events:
    """A reader of a router's /ha/events, from a thread of its own."""

    def __init__(self, router):
        self.seen = []
        self._tcp = router.machine.connect("127.0.0.1", API)
        self._tcp.settimeout(None)
        self._tcp.sendall(b"GET /ha/events HTTP/1.1\r\nhost: smg\r\n\r\n")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        name = None
        with contextlib.suppress(OSError, ValueError):
            for line in self._tcp.makefile("rb"):
                text = line.decode().strip()
                if text.startswith("event: "):
                    name = text.removeprefix("event: ")
                elif text.startswith("data: "):
                    self.seen.append((time.time(), name, json.loads(text.removeprefix("data: "))))

    def close(self):
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)
        self._tcp.close()


# --- tests -----------------------------------------------------------------------------------------------------------


class ChaosTest(unittest.TestCase):
    """A test with a network of its own."""

    def run(self, result=None):
        if result is None:
            result = self.defaultTestResult()
        if impossible():
            return super().run(result)
        sweep()
        self.network = Network()
        before = len(result.failures) + len(result.errors)
        try:
            return super().run(result)
        finally:
            if len(result.failures) + len(result.errors) > before:
                self.network.dump_logs()
            shutil.rmtree(self.network.directory, ignore_errors=True)

    def setUp(self):
        if why := impossible():
            print(f"\n!!! SKIPPED: {self.id()}: {why}", file=sys.stderr)
            self.skipTest(why)
        self.addCleanup(self.network.close)

    def machines(self, count):
        """Machines node1, node2, …"""
        return [self.network.machine(f"node{number}") for number in range(1, count + 1)]

    def router(self, machine, *flags, peers=None, name=None, **variables):
        """A router on a machine. `peers`: join addresses, otherwise those of all nodes, itself included."""
        if peers is None:
            peers = [f"{name}:{MESH}" for name in self.network.machines if name.startswith("node")]
        own = ["--enable-mesh", "--mesh-server-name", name or machine.name]
        own += ["--mesh-peer-urls", ",".join(peers)] if peers else []
        own += ["--log-json"]
        if not any("api-key" in word for word in flags) and not any("API_KEY" in name for name in variables):
            # Tests write from other machines, as an operator without keys on a closed network does.
            own += ["--admin-open"]
        if "--drain-settle-secs" not in flags:
            own += ["--drain-settle-secs", "0"]
        if "--worker-urls" not in flags:
            own += ["--min-ready-workers", "0"]
        return Router(machine, binary(), *own, *flags, **variables)

    def cluster(self, count, *flags, **variables):
        """Routers node1, node2, … that know each other."""
        routers = [self.router(machine, *flags, **variables) for machine in self.machines(count)]
        self.await_all_alive(routers, 10)
        for router in routers:
            eventually(f"{router.machine} has all its connections", router.health, lambda seen: seen["reasons"] == [], 5)
        return routers

    def workers(self, count=2, *flags):
        """A machine of mock workers; their URLs."""
        machine = self.network.machine("workers")
        words = [binary(), "mock-worker", "--host", "0.0.0.0", "--port", "9001", "--count", str(count), *flags]
        process = Process(machine, *words)
        eventually("the workers serve", process.log, lambda log: log.count(" on http://") >= count, 20)
        return [f"http://{machine.address}:{9001 + number}" for number in range(count)]

    # --- what is asserted again and again

    def await_all_alive(self, routers, within, names=None):
        """Until each of the routers lists all of them, and nobody else, as ALIVE; how long that took."""
        expected = {name: "ALIVE" for name in names or [router.machine.name for router in routers]}
        began = time.monotonic()
        for router in routers:
            left = within - (time.monotonic() - began)
            eventually(f"{router.machine} lists {list(expected)} as ALIVE", router.states, lambda seen: seen == expected, left)
        return time.monotonic() - began

    def await_state(self, routers, name, states, within):
        """Until each of the routers has that name in one of the states; how long that took."""
        began = time.monotonic()
        for router in routers:
            left = within - (time.monotonic() - began)
            eventually(f"{router.machine} has {name} {states}", router.states, lambda seen: seen.get(name) in states, left)
        return time.monotonic() - began

    def await_equal_digests(self, routers, within):
        """Until all routers hold the same, store by store."""
        read = lambda: {router.machine.name: router.digests() for router in routers}  # noqa: E731
        equal = lambda seen: len({json.dumps(stores, sort_keys=True) for stores in seen.values()}) == 1  # noqa: E731
        return eventually("all digests are equal", read, equal, within)

    def await_transition(self, router, name, to, since, within):
        """Until the router has seen that change; when it was, in seconds after `since`."""
        found = lambda seen: any(at >= since and state == to for at, _, _, state in seen)  # noqa: E731
        eventually(f"{router.machine} sees {name} {to}", lambda: router.transitions(name), found, within)
        return next(at - since for at, _, _, state in router.transitions(name) if at >= since and state == to)

    def assert_never(self, routers, to, since=0.0, but=()):
        """No router has seen any other in that state."""
        for router in routers:
            seen = [step for step in router.transitions() if step[0] >= since and step[3] == to and step[1] not in but]
            self.assertEqual(seen, [], f"{router.machine} saw {to}")

    def assert_calm(self, routers):
        """No panic, and no loop of errors."""
        for router in routers:
            log = router.log()
            self.assertNotIn("panicked", log, f"{router.machine}")
            errors = [record for record in router.records() if record.get("level") == "ERROR"]
            self.assertLess(len(errors), 10, f"{router.machine}: {errors[:3]}")
