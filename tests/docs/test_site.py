"""The documentation as a site: mdBook builds it without a warning, it contains every page, and every link inside it leads to a
file and a heading. MDBOOK names the program if it is not on the path.
"""

import html.parser
import os
import pathlib
import shutil
import subprocess
import unittest
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
SITE = ROOT / "target" / "site"
MDBOOK = os.environ.get("MDBOOK") or shutil.which("mdbook")


class Page(html.parser.HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given[name] for name in ("href", "src") if given.get(name)]
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}


@unittest.skipUnless(MDBOOK, "mdbook is not installed")
class Site(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        command = [str(ROOT / "deploy" / "site")]
        cls.output = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"MDBOOK": MDBOOK}
        ).stdout
        cls.pages = {path: Page(path) for path in SITE.glob("docs/**/*.html")}

    def test_it_is_built_without_a_warning(self):
        self.assertNotRegex(self.output, "WARN|ERROR")

    def test_every_page_is_in_the_table_of_contents(self):
        written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").glob("**/*.md")}
        built = {path.relative_to(SITE / "docs") for path in self.pages}
        self.assertEqual(written - built, {pathlib.Path("SUMMARY.html")})

    def test_every_link_leads_somewhere(self):
        checked, wrong = 0, []
        for path, page in self.pages.items():
            if path.name in ("404.html", "toc.html", "print.html"):
                # Made by mdBook: the first has another base, the last joins all pages.
                continue
            for link in page.links:
                address = urllib.parse.urlsplit(link)
                if address.scheme or address.netloc:
                    continue
                to = (path.parent / urllib.parse.unquote(address.path)).resolve() if address.path else path
                checked += 1
                if not to.exists():
                    wrong.append(f"{path.relative_to(SITE)}: {link}: there is no such file")
                elif address.fragment and to in self.pages and address.fragment not in self.pages[to].anchors:
                    wrong.append(f"{path.relative_to(SITE)}: {link}: there is no such heading")
        self.assertEqual(wrong, [])
        self.assertGreater(checked, 500)

    def test_no_page_loads_anything_from_elsewhere(self):
        for path, page in self.pages.items():
            text = path.read_text()
            for marker in ('src="http', "src='http", 'rel="stylesheet" href="http'):
                self.assertNotIn(marker, text, path)


if __name__ == "__main__":
    unittest.main()
