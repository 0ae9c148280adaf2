"""The unit file `deploy/systemd/smg.service`: checked by systemd itself, and run by a real systemd.

The real systemd is this machine's, as process 1 of namespaces of its own, on a copy-on-write view of this machine's files. That needs
root, overlayfs and a cgroup hierarchy; the tests are skipped where one is missing.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "sdk"))

from support import binary, environment, eventually  # noqa: E402

SYSTEMD = pathlib.Path("/lib/systemd/systemd")
SHIPPED = ROOT / "deploy" / "systemd"
# Ten times the exposure that `systemd-analyze security` shows: 100 is unprotected, 0 is nothing left to protect.
MOST_EXPOSURE = 20
# The process 1 of the namespaces: mounts what a container would, and becomes systemd, which starts smg.service only.
BOOT = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
if [ -d /sys/fs/cgroup/systemd ]; then
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
else
    mount -t cgroup2 cgroup2 sys/fs/cgroup
fi
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ip link set lo up
mkdir -p etc/smg usr/lib/sysusers.d
cp "$2/smg.service" etc/systemd/system/smg.service
cp "$2/sysusers.conf" usr/lib/sysusers.d/smg.conf
cp "$2/smg.toml" "$2/smg.env" etc/smg/
chmod 600 etc/smg/smg.env
cp "$3" usr/bin/smg
pivot_root . mnt
umount -l /mnt
systemd-sysusers smg.conf
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=smg-test \
    /lib/systemd/systemd --system --unit=smg.service --log-target=console --show-status=false
"""


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout.strip()


@unittest.skipUnless(shutil.which("systemd-analyze"), "systemd is not installed")
class Unit(unittest.TestCase):
    def unit(self):
        """The shipped unit with the binary where it is here, so that systemd finds no other difference."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        unit = pathlib.Path(directory.name) / "smg.service"
        text = (SHIPPED / "smg.service").read_text()
        self.assertEqual(text.count("ExecStart=/usr/bin/smg "), 1)
        unit.write_text(text.replace("ExecStart=/usr/bin/smg ", f"ExecStart={binary()} "))
        return unit

    def test_systemd_has_nothing_to_complain_about(self):
        unit = self.unit()
        self.assertEqual(run("systemd-analyze", "verify", str(unit)), (0, ""))
        # Would a mistake be seen?
        unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPriviliges="))
        self.assertIn("NoNewPriviliges", run("systemd-analyze", "verify", str(unit))[1])

    def test_the_service_is_confined(self):
        status, output = run(
            "systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(self.unit())
        )
        self.assertEqual(status, 0, output)


def impossible():
    """Why no systemd can be run here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    if missing := [tool for tool in ("unshare", "nsenter", "ip", "systemd-sysusers") if not shutil.which(tool)]:
        return f"needs {missing[0]}"
    if not cgroup().parent.is_dir():
        return "needs a cgroup hierarchy"
    with tempfile.TemporaryDirectory() as name:
        # An overlay of this machine's files, in namespaces like those of the test.
        attempt = 'mount -t tmpfs t "$0" && mkdir "$0/u" "$0/w" "$0/r" && mount -t overlay o -o lowerdir=/,upperdir=$0/u,workdir=$0/w "$0/r"'
        status, output = run("unshare", "-m", "-p", "-C", "-n", "-f", "sh", "-c", attempt, name)
        return output if status else None


def cgroup():
    """The cgroup in which systemd runs: it takes the one that it finds itself in for the root."""
    named = pathlib.Path("/sys/fs/cgroup/systemd")
    return (named if named.is_dir() else pathlib.Path("/sys/fs/cgroup")) / f"smg-test-{os.getpid()}"


WHY_NOT = impossible()


@unittest.skipIf(WHY_NOT, WHY_NOT)
class Service(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        cgroup().mkdir()
        self.addCleanup(self.remove_cgroup)

        processes = cgroup() / "cgroup.procs"

        def enter():
            # The process that writes.
            processes.write_text("0")

        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--kill-child"]
        self.log = open(pathlib.Path(directory.name) / "log", "w+")
        self.addCleanup(self.log.close)
        place = pathlib.Path(directory.name) / "overlay"
        place.mkdir()
        self.systemd = subprocess.Popen(
            ["unshare", *namespaces, "bash", "-c", BOOT, "boot", str(place), str(SHIPPED), binary()],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=environment(),
            preexec_fn=enter,
        )
        self.addCleanup(self.end)
        self.first = None
        eventually(self.find_first, "systemd runs")
        eventually(lambda: self.systemctl("is-active", "smg")[1] in ("active", "failed"), "smg.service is started")
        self.assertEqual(self.show("ActiveState")["ActiveState"], "active", self.output() + self.journal())

    def find_first(self):
        """The process 1 of the namespaces, once it is systemd."""
        children = pathlib.Path(f"/proc/{self.systemd.pid}/task/{self.systemd.pid}/children").read_text().split()
        if children and pathlib.Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
            self.first = children[0]
        self.assertIsNone(self.systemd.poll(), self.output())
        return self.first

    def output(self):
        return pathlib.Path(self.log.name).read_text()

    def end(self):
        self.systemd.kill()
        self.systemd.wait()

    def remove_cgroup(self):
        def is_removed():
            for path in sorted(cgroup().rglob("*"), reverse=True):
                if path.is_dir():
                    path.rmdir()
            cgroup().rmdir()
            return True

        def attempt():
            try:
                return is_removed()
            except OSError:
                # Its processes are still ending.
                return False

        eventually(attempt, "the cgroup is removed")

    def inside(self, *command):
        return run("nsenter", "--target", self.first, "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", *command)

    def systemctl(self, *arguments):
        return self.inside("systemctl", *arguments)

    def show(self, *properties):
        _, output = self.systemctl("show", "smg", *(f"--property={name}" for name in properties))
        return dict(line.split("=", 1) for line in output.splitlines())

    def append(self, line):
        self.inside("sh", "-c", f"echo '{line}' >> /etc/smg/smg.toml")

    def journal(self):
        return self.inside("journalctl", "--unit=smg", "--output=cat", "--no-pager")[1]

    def test_it_starts_reloads_and_stops(self):
        shown = self.show("StatusText", "User", "NRestarts", "Type", "MainPID")
        self.assertEqual(shown["Type"], "notify")
        self.assertEqual(shown["StatusText"], "serving on 0.0.0.0:8000")
        self.assertEqual(shown["NRestarts"], "0")
        status, answer = self.inside("python3", "-c", "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/liveness').status)")
        self.assertEqual((status, answer), (0, "200"))
        owner = self.inside("stat", "--format=%U %a", f"/proc/{shown['MainPID']}", "/var/lib/smg")[1].split()
        self.assertEqual([owner[0], *owner[2:]], ["smg", "smg", "700"])

        self.append('log-level = "debug"')
        self.assertEqual(self.systemctl("reload", "smg"), (0, ""))
        eventually(lambda: "the configuration was read again" in self.journal(), "the router has read its file again")

        self.append('policy = "sometimes"')
        self.assertNotEqual(self.systemctl("reload", "smg")[0], 0)
        self.assertIn("sometimes", self.journal())
        self.assertEqual(self.show("ActiveState", "MainPID"), {"ActiveState": "active", "MainPID": shown["MainPID"]})

        self.assertEqual(self.systemctl("stop", "smg"), (0, ""))
        self.assertEqual(self.show("ActiveState", "Result"), {"ActiveState": "inactive", "Result": "success"})

        # A mistake in the configuration is not tried again every five seconds.
        self.assertNotEqual(self.systemctl("start", "smg")[0], 0)
        shown = self.show("ActiveState", "ExecMainStatus", "NRestarts")
        self.assertEqual(shown, {"ActiveState": "failed", "ExecMainStatus": "2", "NRestarts": "0"})


if __name__ == "__main__":
    unittest.main()
