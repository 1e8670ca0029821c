"""The page in a real browser: phone and desktop, light and dark; and with names that try to break it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.report.lab import STUDY, do_study

SIZES = {"phone": (375, 812), "desktop": (1280, 900)}

OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.right > innerWidth + 1 && !e.closest('.scroll, pre');
}).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))"""

CONTRAST = """() => {
  const part = c => { const v = c / 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = text => { const [r, g, b] = text.match(/[0-9.]+/g).map(Number);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b); };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = c => { const v = light(c); return (Math.max(v, paper) + 0.05) / (Math.min(v, paper) + 0.05); };
  const series = [...document.querySelectorAll('figure svg path')]
    .filter(e => (e.getAttribute('style') || '').includes('var(--series')).map(e => getComputedStyle(e).stroke)
    .filter(c => c.startsWith('rgb('));
  const texts = [...document.querySelectorAll('figure svg text')].filter(e => !e.style.fill.match(/^(rgb|#)/))
    .map(e => getComputedStyle(e).fill);
  return {text: Math.min(...texts.map(ratio)), colours: [...new Set(series)].map(c => [c, ratio(c)])};
}"""


@dataclass
class Seen:
    page: Any
    said: list[str]
    asked: list[str]


@pytest.fixture
def look_at(browser: Any) -> Any:
    """`look_at(path, size, scheme)`: the page from its file, what the console said and what was asked for."""
    contexts = []

    def look(path: Path, size: str = "desktop", scheme: str = "light") -> Seen:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        seen = Seen(page, [], [])
        page.on("console", lambda message: seen.said.append(message.text))
        page.on("pageerror", lambda error: seen.said.append(str(error)))
        page.on("request", lambda request: seen.asked.append(request.url))
        page.goto(path.resolve().as_uri())
        return seen

    yield look
    for context in contexts:
        context.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_stands_alone_and_fits(lab_page: Path, look_at: Callable[..., Seen], size: str, scheme: str) -> None:
    seen = look_at(lab_page, size, scheme)
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith("data:")] == [lab_page.resolve().as_uri()]
    for details in seen.page.query_selector_all("details"):
        details.evaluate("e => { e.open = true }")
    assert seen.page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    assert seen.page.evaluate(OVERFLOWING) == []
    assert min(seen.page.evaluate("[...document.querySelectorAll('figure svg')].map(e => e.clientWidth)")) > 300


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_of_figures_can_be_seen_on_the_theme(
    lab_page: Path, look_at: Callable[..., Seen], scheme: str
) -> None:
    found = look_at(lab_page, "desktop", scheme).page.evaluate(CONTRAST)
    assert found["text"] > 7
    colours = dict(found["colours"])
    assert len(colours) >= 3  # as many as methods
    assert all(ratio > 3 for ratio in colours.values()), colours


def test_every_figure_has_axes_with_titles_and_a_caption(lab_page: Path, look_at: Callable[..., Seen]) -> None:
    page = look_at(lab_page).page
    figures = page.query_selector_all("figure")
    titles = {f.query_selector("h3").inner_text(): f for f in figures}
    assert len(titles) == len(figures) >= 14
    for title, figure in titles.items():
        caption = figure.query_selector("figcaption").inner_text()
        assert "seeds" in caption or "point is a run" in caption, title
        texts = [t.text_content() for t in figure.query_selector_all("svg text")]
        named = [t for t in texts if t.rstrip().endswith(")") or t in ("cosine", "loss on the training data")]
        assert len(named) >= 2, (title, texts)
    text = " ".join(t.text_content() for t in titles["Test accuracy against phase noise"].query_selector_all("text"))
    assert "phase noise (rad)" in text and "test accuracy (%)" in text
    assert all(name in text for name in ("steady", "fragile", "twin"))


def test_links_lead_to_runs_and_files(lab_page: Path, look_at: Callable[..., Seen]) -> None:
    page = look_at(lab_page).page
    links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    beside = [link for link in links if not link.startswith("#")]
    assert len(beside) > 80
    assert [link for link in beside if not (lab_page.parent / link).exists()] == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert [link for link in links if link.startswith("#") and link[1:] not in ids] == []


EVIL = "<script>document.title='x'</script>"
NAMES = {"steady": f"{EVIL} $x^{{2$", "fragile": "_hidden \\frac{", "twin": '"quoted" & =1+1 ' + "long " * 30}


@pytest.mark.slow
def test_names_from_a_configuration_are_text(
    tmp_path: Path, look_at: Callable[..., Seen], report: Callable[..., tuple[int, str, str]]
) -> None:
    study = copy.deepcopy(STUDY)
    study["axes"]["method"]["values"] = {NAMES[name]: part for name, part in study["axes"]["method"]["values"].items()}
    study["axes"]["method"]["tiers"] = {NAMES["steady"]: "inject", NAMES["twin"]: f"twin {EVIL}"}
    study["axes"]["phase_noise"]["label"] = f"$\\sigma {EVIL}"
    del study["axes"]["converter"]
    folder = do_study(tmp_path, study)
    status, out, _ = report(folder, "--out", tmp_path / "page")
    assert status == 0 and EVIL in out
    seen = look_at(tmp_path / "page" / "index.html", "phone")
    assert seen.said == [] and seen.page.title() == "Study lab_study"
    assert seen.page.evaluate("document.scripts.length") == 0
    assert seen.page.evaluate("document.documentElement.scrollWidth") == SIZES["phone"][0]
    assert seen.page.evaluate(OVERFLOWING) == []
    text = seen.page.text_content("body")
    assert all(name.split()[0] in text for name in NAMES.values()) and "<b>plain" in text
    legend = " ".join(t.text_content() for t in seen.page.query_selector_all("figure svg text"))
    assert "_hidden" in legend and "$\\sigma" in legend
