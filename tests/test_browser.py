"""The committed reports in a real browser: nothing on the console, nothing missing, nothing wider than a phone.

A harness page opens every page of a report in a frame as wide as a phone and looks from inside: does it have its style
sheet, its headings, its figures, and does it scroll sideways? Needs Chromium on the path (Debian: `chromium`).
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from tests.synthetic import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REPORTS = [
    path.parent for path in (ROOT / "reports/index.html", *ROOT.glob("profiles/*/reports/index.html")) if path.exists()
]
PHONE = 390  # CSS pixels
HARNESS = """<!doctype html><meta charset="utf-8"><pre id="found">unfinished</pre><script>
const pages = PAGES, found = {};
function applied(link) {
  try { return link.sheet.cssRules.length > 0; } catch { return false; }
}
async function look(page) {
  const frame = document.createElement("iframe");
  frame.style = "width: PHONEpx; height: 800px; border: 0";
  frame.src = page;
  await new Promise(done => { frame.onload = done; document.body.append(frame); });
  const inner = frame.contentDocument, root = inner.scrollingElement;
  found[page] = {
    title: inner.title,
    styled: [...inner.querySelectorAll("link[rel=stylesheet]")].every(applied),
    pictures: [...inner.images].every(image => image.naturalWidth > 0),
    headings: inner.querySelectorAll("h1").length,
    empty: [...inner.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().height < 50).length,
    sideways: root.scrollWidth - root.clientWidth,
  };
  frame.remove();
}
(async () => {
  for (const page of pages) await look(page);
  document.getElementById("found").textContent = JSON.stringify(found);
})();
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path")


def browse(pages: list[Path], folder: Path) -> tuple[dict, list[str]]:
    """What the harness found on every page, and what the pages wrote to the console."""
    harness = folder / "harness.html"
    addresses = json.dumps([page.as_uri() for page in pages])
    harness.write_text(HARNESS.replace("PAGES", addresses).replace("PHONE", str(PHONE)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--enable-logging=stderr"]
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [CHROMIUM, *flags, profile, "--virtual-time-budget=600000", "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL).group(1)
    return json.loads(unescape(found)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("report", REPORTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_sound_on_a_phone(report, tmp_path):
    pages = sorted(report.rglob("*.html"))
    found, console = browse(pages, tmp_path)
    assert console == [] and len(found) == len(pages)
    for page, state in found.items():
        assert state["title"] and state["styled"] and state["pictures"], (page, state)
        assert state["headings"] == 1 and state["empty"] == 0 and state["sideways"] <= 0, (page, state)


def test_the_harness_sees_faults(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!doctype html><title>x</title><link rel="stylesheet" href="none.css"><img src="none.png">'
        '<div style="width: 900px">wide</div><script>console.error("boo")</script>'
    )
    found, console = browse([bad], tmp_path)
    (state,) = found.values()
    assert not state["styled"] and not state["pictures"] and state["headings"] == 0 and state["sideways"] > 400
    assert len(console) == 1 and "boo" in console[0]
