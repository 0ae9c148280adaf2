"""What can be known of the packages without making them: `deploy/release` makes and tries them, which takes minutes."""

import pathlib
import re
import subprocess
import tomllib
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text())
DEB = CARGO["package"]["metadata"]["deb"]
RELEASE = (ROOT / "deploy" / "release").read_text()


class Packages(unittest.TestCase):
    def test_the_files_of_the_debian_package_exist_or_are_made(self):
        for source, target, mode in DEB["assets"]:
            if source.startswith("target/dist/"):
                name = source.removeprefix("target/dist/")
                self.assertRegex(RELEASE, rf"\$DIST/{re.escape(name)}\"", f"deploy/release makes {name}")
            else:
                self.assertTrue((ROOT / source).is_file(), source)
            self.assertFalse(target.startswith("/"), f"{target}: assets are relative to the root")
            self.assertRegex(mode, r"^[67][045][045]$")

    def test_what_users_change_survives_an_upgrade(self):
        files = {"/" + target + pathlib.Path(source).name for source, target, _ in DEB["assets"] if target.startswith("etc/")}
        self.assertEqual(files, set(DEB["conf-files"]))

    def test_secrets_are_readable_by_root_only(self):
        modes = {pathlib.Path(source).name: mode for source, _, mode in DEB["assets"]}
        self.assertEqual(modes["smg.env"], "600")

    def test_the_unit_finds_what_the_package_installs(self):
        unit = (ROOT / "deploy" / "systemd" / "smg.service").read_text()
        installed = set()
        for source, target, _ in DEB["assets"]:
            installed.add("/" + (target + pathlib.Path(source).name if target.endswith("/") else target))
        for named in re.findall(r"^(?:ExecStart|EnvironmentFile)=-?(\S+)", unit, re.MULTILINE):
            self.assertIn(named, installed)
        (configuration,) = set(re.findall(r"--config (\S+)", unit))
        self.assertIn(configuration, installed)
        (documentation,) = re.findall(r"^Documentation=file://(\S+)", unit, re.MULTILINE)
        self.assertIn(documentation, installed)

    def test_scripts_have_no_mistake_of_syntax(self):
        scripts = [ROOT / "deploy" / "release", ROOT / "deploy" / "site", *sorted((ROOT / "deploy" / "debian").iterdir())]
        self.assertEqual(len(scripts), 5)
        for script in scripts:
            shell = script.read_text().splitlines()[0].split("/")[-1].split()[-1]
            done = subprocess.run([shell, "-n", script], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""), script)
            self.assertTrue(script.stat().st_mode & 0o100, f"{script} is executable")

    def test_the_wheel_and_the_package_are_one_version(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        self.assertEqual(project["dynamic"], ["version"], "it comes from Cargo.toml")
        self.assertEqual(project["license"], CARGO["workspace"]["package"]["license"])
        self.assertEqual(project["description"], CARGO["package"]["description"])


if __name__ == "__main__":
    unittest.main()
