"""The page in a real browser: no error, each picture loads, all has a name, nothing is wider than a phone.

Chromium or Chrome is found by its name; without it, these tests are skipped.
"""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyro_vi
from pyro_vi.reporting.page import DIAGNOSTICS

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
WIDTHS = (360, 1200)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]

# It runs in the page, and hands what it finds to the page around it.
PROBE = """
addEventListener("error", event => errors.push(event.message));
addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective + " " + event.blockedURI));
const errors = [];
const named = element => {
  const by = element.getAttribute("aria-labelledby");
  if (by) return by.split(" ").map(id => document.getElementById(id).textContent).join(" ").trim();
  const label = element.getAttribute("aria-label") || element.alt || (element.caption || element).textContent;
  return (label || "").trim();
};
addEventListener("load", () => setTimeout(async () => {
  const images = [...document.images];
  await Promise.all(images.map(image => image.decode().catch(error => errors.push(String(error)))));
  const sorted = [];
  for (const button of document.querySelectorAll("button.sort")) {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const before = body.rows.length, orders = () => [...body.rows].map(row => row.cells[head.cellIndex].dataset.order)
      .filter(order => order !== undefined).map(Number);
    const grows = list => list.every((order, place) => !place || list[place - 1] <= order);
    button.click();
    const up = head.getAttribute("aria-sort") === "ascending" && grows(orders());
    button.click();
    const down = head.getAttribute("aria-sort") === "descending" && grows(orders().reverse());
    const one = head.closest("tr").querySelectorAll("[aria-sort]").length === 1;
    sorted.push(up && down && one && body.rows.length === before);
  }
  const kinds = "a, button, img, table, nav, section, summary, [role=region], h1, h2, h3";
  parent.postMessage({
    errors,
    width: innerWidth,
    wide: document.documentElement.scrollWidth,
    sections: [...document.querySelectorAll("main > section")].map(section => section.id),
    images: images.map(image => Math.min(image.naturalWidth, image.getBoundingClientRect().width)),
    unnamed: [...document.querySelectorAll(kinds)].filter(one => !named(one)).map(one => one.outerHTML.slice(0, 80)),
    sorted,
    landmarks: ["header", "main", "nav", "footer"].map(tag => document.querySelectorAll(tag).length),
    ground: getComputedStyle(document.body).backgroundColor,
  }, "*");
}, 50));
"""

AROUND = """<!doctype html><title>around</title><body>{frames}<pre id="found"></pre><script>
const found = [];
addEventListener("message", event => {{
  found.push(event.data);
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a fit of images, whose model and data have names that would end a tag."""
    folder = tmp_path_factory.mktemp("browser")
    options: dict[str, Any] = {"steps": 30, "progress": False, "compile": False, "out": folder / "</script><script>"}
    pyro_vi.fit("vae(latent_dim=2)", "diag_normal", "digits", **options)
    return pyro_vi.report(options["out"], rows=20).read_text(encoding="utf-8")


def seen(text: str, folder: Path, *flags: str) -> tuple[list[dict[str, Any]], str]:
    """What the probe finds at each width, and what the browser writes on its console."""
    assert BROWSER is not None
    probed = text.replace("<head>", f"<head><script>{PROBE}</script>", 1)
    (folder / "probed.html").write_text(probed, encoding="utf-8")
    frames = "".join(f'<iframe src="probed.html" width="{width}" height="800"></iframe>' for width in WIDTHS)
    (folder / "around.html").write_text(AROUND.format(frames=frames), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", *flags, "--dump-dom"]
    done = subprocess.run([*command, (folder / "around.html").as_uri()], capture_output=True, text=True, timeout=300)
    content = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert content and content[1], done.stderr
    said = "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return sorted(json.loads(html.unescape(content[1])), key=lambda one: one["width"]), said


def test_the_page_works_in_a_browser_at_the_width_of_a_phone_and_of_a_desk(page: str, tmp_path: Path) -> None:
    found, console = seen(page, tmp_path)
    assert [one["width"] for one in found] == list(WIDTHS)
    assert console == ""
    for one in found:
        assert one["errors"] == []
        assert one["wide"] <= one["width"]  # tables and figures scroll in their own boxes
        assert one["sections"] == ["verdict", "fit", *DIAGNOSTICS, "training", "pictures", "glossary"]
        assert len(one["images"]) >= 5 and min(one["images"]) > 100
        assert one["unnamed"] == []
        assert len(one["sorted"]) > 10 and all(one["sorted"])
        assert one["landmarks"] == [1, 1, 1, 1]


def test_the_page_is_light_or_dark_as_the_reader_likes(page: str, tmp_path: Path) -> None:
    grounds = []
    for scheme in (1, 0):  # of Blink's settings: light, dark
        (tmp_path / str(scheme)).mkdir()
        found, _ = seen(page, tmp_path / str(scheme), f"--blink-settings=preferredColorScheme={scheme}")
        grounds.append(np.mean([int(number) for number in re.findall(r"\d+", found[0]["ground"])[:3]]))
    assert grounds[0] > 240 and grounds[1] < 40


def test_the_page_prints(page: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    paper = tmp_path / "page.pdf"
    subprocess.run(
        [*command, f"--print-to-pdf={paper}", (tmp_path / "page.html").as_uri()], check=True, capture_output=True
    )
    assert paper.read_bytes().startswith(b"%PDF") and paper.read_bytes().count(b"/Type /Page\n") >= 3


def test_the_probe_finds_what_is_wrong(page: str, tmp_path: Path) -> None:
    empty = base64.b64encode(b"no picture").decode()
    wrong = f'<img src="data:image/png;base64,{empty}"><div style="width: 3000px">wide</div><script>nothing.there()</script>'
    found, console = seen(page.replace("</main>", f"{wrong}</main>"), tmp_path)
    assert min(found[0]["images"]) == 0 and found[0]["wide"] >= 3000
    assert found[0]["unnamed"] and any("nothing is not defined" in error for error in found[0]["errors"])
    assert "nothing is not defined" in console
