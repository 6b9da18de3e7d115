"""The built site in a browser: no error in the console, every figure drawn, no text clipped.

`make docs` builds the site. Tests skip without the site or without Chromium.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parent.parent / "docs" / "_build" / "html"
BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PAGES = [
    "index.html",
    "claims.html",
    "tutorial/1_muon_in_ten_minutes.html",
    "tutorial/2_newton_schulz.html",
    "tutorial/3_scales_and_shapes.html",
    "tutorial/4_from_sgd_to_muonclip.html",
    "tutorial/5_sharding.html",
    "tutorial/6_inside_a_run.html",
    "tutorial/7_between_sgd_and_muon.html",
    "tutorial/8_what_muon_does_to_your_model.html",
    "how-to/installation.html",
    "how-to/hyperparameters.html",
    "how-to/cookbook.html",
    "how-to/faq.html",
    "how-to/muonclip.html",
    "how-to/experts.html",
    "how-to/finetuning.html",
    "how-to/from-optax.html",
    "explanation/family.html",
    "explanation/comparison.html",
    "explanation/norms.html",
    "explanation/orthogonalizers.html",
    "explanation/scaling.html",
    "reference/api.html",
    "reference/optimizers.html",
    "reference/diagnostics.html",
]
FIGURES = {"index": 1, "1": 1, "2": 3, "3": 1, "4": 1, "5": 1, "6": 1, "7": 5, "muonclip": 1}
FIGURES |= {"experts": 1, "finetuning": 1, "comparison": 3, "norms": 2, "scaling": 4}

WIDTHS = [1280, 500]  # pixels; the second is the narrowest window of headless Chromium

# Scripts for the page, the first before all other scripts; they store results for the test.
LISTENER = """<head><script>
const problems = [];
for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(words.join(" "));
addEventListener("error", (event) => problems.push(event.message || "not loaded"), true);
addEventListener("unhandledrejection", (event) => problems.push(`${event.reason}`));
</script>"""
WITNESS = """<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("article img")].map(
    (image) => image.naturalWidth > 100 && image.getBoundingClientRect().width > 100);
  const formulas = [...document.querySelectorAll("article math")].map(
    (formula) => formula.getBoundingClientRect().width > 0);
  document.documentElement.dataset.seen = JSON.stringify(
    {images: seen, formulas: formulas, problems: problems,
     clipped: document.documentElement.scrollWidth - innerWidth});
});
</script></body>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="`make docs` has built no site"),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH, nor in $CHROMIUM"),
]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site with a script in each page, and records requests for missing files."""

    missing: list[str]

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.suffix != ".html" or not file.exists():
            if not file.exists() and file.name != "favicon.ico":
                self.missing.append(self.path)
            return super().do_GET()
        text = file.read_text(encoding="utf-8")
        page = text.replace("<head>", LISTENER, 1).replace("</body>", WITNESS).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    handler = type("Witnessed", (Handler,), {"missing": []})
    serve = functools.partial(handler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", handler.missing
        listening.shutdown()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_whole_without_error_and_with_its_figures(server, page, width, tmp_path):
    address, missing = server
    missing.clear()
    options = ["--headless", "--no-sandbox", "--disable-gpu"]
    options += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom"]
    options += [f"--window-size={width},900"]
    opened = subprocess.run(
        [str(BROWSER), *options, f"{address}/{page}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert missing == []
    witness = re.search(r'data-seen="([^"]*)"', opened.stdout)
    assert witness, "the page did not finish loading"
    seen = json.loads(unescape(witness[1]))
    assert seen["problems"] == []
    assert seen["clipped"] <= 0
    assert all(seen["images"])
    assert all(seen["formulas"])
    assert len(seen["images"]) >= FIGURES.get(re.split(r"[._]", Path(page).name)[0], 0)
