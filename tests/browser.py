"""A real browser without a screen, for pages: what happened while one was shown, and what a script found in it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
LISTENERS = """<script>
const problems = [];
addEventListener("error", (event) => problems.push(String(event.message || event.target.outerHTML)), true);
addEventListener("securitypolicyviolation", (event) => problems.push(`blocked: ${event.blockedURI}`));
console.error = (...what) => problems.push(what.join(" "));
</script>"""


def browser() -> str:
    """The path of one; skips the test where there is none."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"needs a browser, and none of {', '.join(NAMES)} is installed (Debian: apt install chromium)")
    return found


def look_at(page: Path, folder: Path, script: str) -> dict[str, Any]:
    """Open `page` from disk, run `script` (the body of a function) in it; what it returns, and `problems`, `asked`.

    `problems` are errors of scripts and pictures and what the page's policy refused, `asked` the addresses that
    the page loaded anything from, but those within itself.
    """
    probe = (
        f"<script>const look = () => {{{script}}};"
        # once all is there, and after what the browser has to say about it
        'addEventListener("load", () => setTimeout(() => {'
        'const told = look(), note = document.createElement("pre"); note.id = "told";'
        'const asked = performance.getEntriesByType("resource").map((entry) => entry.name);'
        'const outside = asked.filter((name) => !name.startsWith("data:"));'
        "note.textContent = JSON.stringify({...told, problems, asked: outside});"
        "document.body.append(note); }));</script>"
    )
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{LISTENERS}", 1)
    probed = folder / "probed.html"
    probed.write_text(text.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    done = subprocess.run(
        [browser(), *FLAGS, f"--user-data-dir={folder}/profile", "--window-size=1200,2000",
         "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page did not come to its end: {done.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result
