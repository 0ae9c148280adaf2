"""Runs all scenarios as the gate does: two modules at a time, and what fails is tried once more, alone, before it counts as failed.

Scenarios mostly wait, so that two at a time take little more than half as long as one after the other. Those of limits measure rates
and run alone. Real processes on two cores that others share are sometimes late through no fault of theirs; a scenario that
fails twice in a row is not unlucky. What needed its second chance is said at the end, so that nobody gets used to it.
"""

import concurrent.futures
import pathlib
import re
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).parent
# More than this many failures are no coincidence.
MOST = 6
# Modules whose scenarios measure what a busy machine changes.
ALONE = ["test_limits"]
# The first words of the lines in which a module's process names what has failed.
FAILED = "failed: "


def name_of(test):
    """The name under which a test that failed, or a class that could not be set up, is loaded again."""
    whole = re.fullmatch(r"setUpClass \((.+)\)|tearDownClass \((.+)\)", test.id())
    return (whole.group(1) or whole.group(2)) if whole else test.id()


def run(names):
    """Runs tests in this process. Returns the names of those that failed."""
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = result.failures + result.errors + [(test, "") for test in result.unexpectedSuccesses]
    return sorted({name_of(test) for test, _ in failed})


def run_apart(module):
    """Runs a module in a process of its own. Returns its output, and the names of what failed."""
    command = [sys.executable, __file__, module]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    names = [line.removeprefix(FAILED) for line in done.stdout.splitlines() if line.startswith(FAILED)]
    # A process that died before it could say what failed has failed as a whole.
    return done.stdout, names or ([module] if done.returncode else [])


def main():
    modules = sorted(path.stem for path in HERE.glob("test_*.py"))
    together = [module for module in modules if module not in ALONE]
    failed = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for output, names in pool.map(run_apart, together):
            print(output, file=sys.stderr, flush=True)
            failed += names
    failed += run(ALONE)
    if not failed:
        return 0
    if len(failed) > MOST:
        print(f"\n{len(failed)} failed: {', '.join(failed)}", file=sys.stderr, flush=True)
        return 1
    print(f"\n{len(failed)} failed and get a second chance: {', '.join(failed)}\n", file=sys.stderr, flush=True)
    if again := run(failed):
        print(f"\nFailed twice: {', '.join(again)}", file=sys.stderr, flush=True)
        return 1
    print(f"\n!!! Failed once, passed alone: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    if sys.argv[1:]:
        broken = run(sys.argv[1:])
        print("".join(f"{FAILED}{name}\n" for name in broken), end="", flush=True)
        sys.exit(bool(broken))
    sys.exit(main())
