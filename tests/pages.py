"""What tests of pages look at: their elements, and what a browser makes of them."""

import json
import re
import shutil
import subprocess

import html5lib
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
# Told by a script at the end of a copy of the page; the original holds nothing of it.
PROBE = """
<script>
addEventListener("load", () => {
  const images = [...document.images];
  const table = document.querySelector("SELECTOR");
  const names = () => [...table.tBodies[0].rows].slice(0, 3).map(row => row.cells[0].textContent);
  const buttons = [...table.querySelectorAll("th button")];
  const numbers = buttons.find(button => button.textContent.startsWith("HEADING"));
  numbers.click();
  const first = names();
  numbers.click();
  const second = names();
  buttons[0].click();
  const seen = {
    widths: images.map(image => image.naturalWidth),
    shown: images.map(image => image.getBoundingClientRect().width),
    first, second, third: names(),
    overflow: document.documentElement.scrollWidth - innerWidth,
    resources: performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 60)),
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
  };
  const told = document.createElement("pre");
  told.id = "probe";
  told.textContent = JSON.stringify(seen);
  document.body.append(told);
});
</script>
</body>"""


def parse(path):
    """Parse as a browser does; any error of syntax raises."""
    text = path.read_text(encoding="utf-8")
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)


def words(element):
    """Text of an element with single spaces."""
    return " ".join("".join(element.itertext()).split())


def by_id(page, name):
    """Find the one element of an id."""
    (found,) = [element for element in page.iter() if element.get("id") == name]
    return found


def summary(path):
    """Text at the top of a page."""
    return words(by_id(parse(path), "summary"))


def facts(element):
    """Facts of a part of a page, by their names."""
    names = [words(name) for name in element.iter("dt")]
    return dict(zip(names, [words(value) for value in element.iter("dd")], strict=True))


def table_rows(table):
    """Heads and rows of a table, as text."""
    heads = [words(head) for head in table.findall("./thead/tr/th")]
    rows = [[words(cell) for cell in row] for row in table.findall("./tbody/tr")]
    return heads, rows


def browse(page, folder, *, width=1200, dark=False, table="table.regions", heading="Damaged"):
    """Open a page; what the probe saw, and the lines of the browser's console.

    ``heading`` is the start of that of a column of numbers in the table, which is sorted by it
    twice, and then by its first column.
    """
    copy = folder / page.name
    text = page.read_text(encoding="utf-8")
    assert text.count("</body>") == 1
    probe = PROBE.replace("SELECTOR", table).replace("HEADING", heading)
    copy.write_text(text.replace("</body>", probe), encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         "--enable-logging=stderr", "--virtual-time-budget=8000",
         "--host-resolver-rules=MAP * ~NOTFOUND",
         f"--user-data-dir={folder / 'profile'}", *(["--force-dark-mode"] if dark else []),
         "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=110, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    match = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    return json.loads(match[1]), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def cards(page, start):
    """Cards of a page whose names start so, by their titles."""
    found = (e for e in page.iter("div") if (e.get("id") or "").startswith(start))
    return {words(card.find("h3")): card for card in found}
