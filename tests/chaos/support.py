"""Support for the chaos tests: real routers, each on a machine of its own.

A machine is a network namespace with one address, a hosts file and a host name. A switch (a bridge in a further namespace)
connects the machines of a test. Each test has its own namespaces, so parallel runs do not affect each other. They are removed
after each test; the next run removes those that a killed run left behind.

SMG_BIN names the binary; without it the tests use the debug build, else the release build. SMG_CHAOS_LONG=1 gives soak tests the
durations that the requirements ask for, instead of short ones for everyday runs.
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

# Number of lines of each log that a failure prints.
LOG_LINES = 120


def binary():
    """The path of the smg binary."""
    named = os.environ.get("SMG_BIN")
    built = [ROOT / "target" / profile / "smg" for profile in ("debug", "release")]
    for path in [pathlib.Path(named).resolve()] if named else built:
        if path.is_file():
            return str(path)
    raise FileNotFoundError("no smg binary: set SMG_BIN, or run cargo build")


def environment(**more):
    """The environment without variables that would configure the binary under test, and without proxies."""
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
    """The reason why namespaces can't be created here; None if they can."""
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
    """Removes namespaces of runs that ended without removing them."""
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


# --- waiting and reporting -------------------------------------------------------------------------------------------


def look(read):
    """The result of `read`, or the error that it raised: a router may be unreachable."""
    try:
        return read()
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return error


def eventually(what, read, holds, within):
    """Waits until `holds(read())`; returns the time that took, in seconds."""
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
    """Fails if `holds(read())` becomes false within some seconds."""
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
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 1).__int__() - 1)]


def report(what, values, unit="s"):
    """Prints a measurement together with the load of the machine."""
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
    """Moves this thread into another network namespace. Sockets that it creates there stay there."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        if _libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
        try:
            yield
        finally:
            if _libc.setns(home.fileno(), CLONE_NEWNET):
                # Continuing in the wrong namespace would break other tests.
                os.abort()


class Network:
    """The machines of one test and the switch that connects them."""

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
        """Adds a machine. `names`: the content of its hosts file by name; by default all machines, including later ones."""
        machine = Machine(self, name, f"{NET}.{len(self.machines) + 1}", names)
        self.machines[name] = machine
        self.write_hosts_files()
        return machine

    def write_hosts_files(self):
        all_names = {name: machine.address for name, machine in self.machines.items()}
        for machine in self.machines.values():
            machine.write_hosts(all_names if machine.names is None else machine.names)

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
    """A network namespace with an address."""

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
        # `ip netns exec` mounts these files over those in /etc. Without a name server, only the names in hosts resolve.
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
        # Written in place, because running processes have this file mounted.
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
        """Opens a connection from this machine."""
        tcp = self.socket()
        tcp.settimeout(timeout)
        try:
            tcp.connect((address, port))
        except BaseException:
            tcp.close()
            raise
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tcp

    # --- network faults

    def _rule(self, *words):
        self.run("iptables", "-w", "5", *words)

    def deafen(self, *words):
        """Drops incoming packets that match, for example `-s`, address."""
        self._rule("-A", "INPUT", *words, "-j", "DROP")

    def mute(self, *words):
        """Drops outgoing packets that match."""
        self._rule("-A", "OUTPUT", *words, "-j", "DROP")

    def heal(self):
        """Removes all faults."""
        self._rule("-F", "INPUT")
        self._rule("-F", "OUTPUT")

    def cut_from(self, *others):
        """Drops all packets between this machine and the others, in both directions."""
        for other in others:
            self.deafen("-s", other.address)
            self.mute("-d", other.address)

    def block_mesh(self):
        """Drops all packets of the mesh port, in both directions."""
        for end in ("--dport", "--sport"):
            self.deafen("-p", "tcp", end, str(MESH))
            self.mute("-p", "tcp", end, str(MESH))

    def lose(self, share):
        """Drops a random share of incoming packets."""
        self.deafen("-i", "eth0", "-m", "statistic", "--mode", "random", "--probability", str(share))

    def block_stream(self, peer, call, ports):
        """Drops packets that this machine sends to `peer` on streams of one kind: existing streams by their local ports, new
        ones by the path of their first request."""
        for port in ports:
            self.mute("-p", "tcp", "-d", peer.address, "--sport", str(port))
        path = "|" + huffman(f"/smg.mesh.v1.Mesh/{call}").hex() + "|"
        match = ["-m", "string", "--algo", "bm", "--hex-string", path]
        self.mute("-p", "tcp", "-d", peer.address, "--dport", str(MESH), *match)


def huffman(text):
    """A text in HPACK's Huffman code (RFC 7541, appendix B), without the last byte, which is padded. It knows only the letters of
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
    """A process on a machine, with its log in a file. It is ended after the test in any case."""

    def __init__(self, machine, *words, **variables):
        self.machine = machine
        self.words = words
        network = machine.network
        self._path = pathlib.Path(network.directory) / f"{len(network.processes)}-{machine.name}.log"
        # Each command executes the next one in place, so that the child process is the program itself. It dies with the tests.
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
        """Kills the process with SIGKILL; returns the wall time."""
        self.signal(signal.SIGKILL)
        died = time.time()
        self._child.wait(timeout=10)
        return died

    def wait(self, within):
        """The exit status."""
        return self._child.wait(timeout=within)

    def end(self):
        if self.is_running():
            self._child.kill()
            self._child.wait(timeout=10)

    def memory(self):
        """Resident memory in bytes."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


class Answer:
    """A complete HTTP response."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


def request(machine, address, method, path, document=None, port=API, timeout=5.0):
    """Sends an HTTP request from a machine."""
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
    """A router. Requests to it use the loopback of its machine, which network faults do not affect."""

    def __init__(self, machine, *flags, **variables):
        # A shell script may start it too: then the flags are those of the document.
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
        """The states of all listed routers, by name."""
        return {node["name"]: node["status"] for node in self.status()["nodes"]}

    def node(self, name):
        """The entry of a name; None if there is none."""
        found = [node for node in self.status()["nodes"] if node["name"] == name]
        if len(found) > 1:
            raise AssertionError(f"{name} is listed {len(found)} times: {found}")
        return found[0] if found else None

    def digests(self):
        return {name: store["digest"] for name, store in self.status()["stores"].items()}

    def metrics(self):
        """Values by metric and labels, as exported."""
        answer = self.ask("GET", "/metrics")
        lines = (line for line in answer.body.decode().splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def total(self, name, **labels):
        """The sum over all series of a metric with these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            value
            for series, value in self.metrics().items()
            if series.split("{")[0] == name and all(label in series for label in wanted)
        )

    def records(self):
        """The JSON lines of its log."""
        for line in self.log().splitlines():
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def transitions(self, peer=None):
        """The state changes of other routers that it has logged: wall time, name, from, to."""
        found = []
        for record in self.records():
            fields = record.get("fields", record)
            if fields.get("message") == "a router's state changed" and "peer" in fields:
                name = fields["peer"].split("@")[0].split("#")[0]
                if peer in (None, name):
                    found.append((moment(record), name, fields["from"], fields["to"]))
        return found


def moment(record):
    """The wall time of a record."""
    return datetime.fromisoformat(record["timestamp"].replace("Z", "+00:00")).timestamp()


class Events:
    """Reads a router's /ha/events in a thread."""

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
    """A test with its own network."""

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
        """Starts a router on a machine. `peers`: join addresses; by default those of all nodes, including its own."""
        if peers is None:
            peers = [f"{name}:{MESH}" for name in self.network.machines if name.startswith("node")]
        own = ["--enable-mesh", "--mesh-server-name", name or machine.name]
        own += ["--mesh-peer-urls", ",".join(peers)] if peers else []
        own += ["--log-json"]
        if not any("api-key" in word for word in flags) and not any("API_KEY" in name for name in variables):
            # Tests send admin writes from other machines, as an operator without keys on a closed network does.
            own += ["--admin-open"]
        if "--drain-settle-secs" not in flags:
            own += ["--drain-settle-secs", "0"]
        if "--worker-urls" not in flags:
            own += ["--min-ready-workers", "0"]
        return Router(machine, binary(), *own, *flags, **variables)

    def cluster(self, count, *flags, **variables):
        """Starts routers node1, node2, … as one cluster."""
        routers = [self.router(machine, *flags, **variables) for machine in self.machines(count)]
        self.await_all_alive(routers, 10)
        for router in routers:
            eventually(f"{router.machine} has all its connections", router.health, lambda seen: seen["reasons"] == [], 5)
        return routers

    def workers(self, count=2, *flags):
        """Starts mock workers on a machine; returns their URLs."""
        machine = self.network.machine("workers")
        words = [binary(), "mock-worker", "--host", "0.0.0.0", "--port", "9001", "--count", str(count), *flags]
        process = Process(machine, *words)
        eventually("the workers serve", process.log, lambda log: log.count(" on http://") >= count, 20)
        return [f"http://{machine.address}:{9001 + number}" for number in range(count)]

    # --- assertions that several tests use

    def await_all_alive(self, routers, within, names=None):
        """Waits until each router lists exactly these routers as ALIVE; returns the time that took."""
        expected = {name: "ALIVE" for name in names or [router.machine.name for router in routers]}
        began = time.monotonic()
        for router in routers:
            left = within - (time.monotonic() - began)
            eventually(f"{router.machine} lists {list(expected)} as ALIVE", router.states, lambda seen: seen == expected, left)
        return time.monotonic() - began

    def await_state(self, routers, name, states, within):
        """Waits until each router has that name in one of the states; returns the time that took."""
        began = time.monotonic()
        for router in routers:
            left = within - (time.monotonic() - began)
            eventually(f"{router.machine} has {name} {states}", router.states, lambda seen: seen.get(name) in states, left)
        return time.monotonic() - began

    def await_equal_digests(self, routers, within):
        """Waits until all routers hold the same content in each store."""
        read = lambda: {router.machine.name: router.digests() for router in routers}  # noqa: E731
        equal = lambda seen: len({json.dumps(stores, sort_keys=True) for stores in seen.values()}) == 1  # noqa: E731
        return eventually("all digests are equal", read, equal, within)

    def await_transition(self, router, name, to, since, within):
        """Waits until the router has logged that change; returns its time in seconds after `since`."""
        found = lambda seen: any(at >= since and state == to for at, _, _, state in seen)  # noqa: E731
        eventually(f"{router.machine} sees {name} {to}", lambda: router.transitions(name), found, within)
        return next(at - since for at, _, _, state in router.transitions(name) if at >= since and state == to)

    def assert_never(self, routers, to, since=0.0, but=()):
        """Asserts that no router has seen another one in that state."""
        for router in routers:
            seen = [step for step in router.transitions() if step[0] >= since and step[3] == to and step[1] not in but]
            self.assertEqual(seen, [], f"{router.machine} saw {to}")

    def assert_calm(self, routers):
        """Asserts that there was no panic and no loop of errors."""
        for router in routers:
            log = router.log()
            self.assertNotIn("panicked", log, f"{router.machine}")
            errors = [record for record in router.records() if record.get("level") == "ERROR"]
            self.assertLess(len(errors), 10, f"{router.machine}: {errors[:3]}")
