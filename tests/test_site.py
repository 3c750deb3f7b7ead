"""The site of the documentation: it is built without a warning, its links lead somewhere, and it needs no network."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.browser import complaints, opened
from tests.running import ROOT

pytestmark = pytest.mark.skipif(find_spec("material") is None, reason="no MkDocs Material: pip install -e '.[docs]'")
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
LOOKED_FOR = [
    "resume",
    "out of memory",
    "own images",
    "exit code",
    "glossary",
    "transductive",
    "override",
    "GPU",
    "seeds",
]
LOOKED_FOR += ["quoting", "results.json", "your own algorithm", "checkpoint", "sweep", "reproduce"]


class Page(HTMLParser):
    """What a page of the site says of itself: its anchors, where its links lead, and what a browser fetches for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.anchors, self.links, self.fetched = path, set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if found.get(FETCHED.get(tag, "")) and found.get("rel") != "canonical":
            self.fetched.append(found[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def dead(page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    """The links and files of a page of which there is nothing in the site."""
    for link in [*page.links, *page.fetched]:
        path, _, anchor = unquote(link).partition("#")
        if re.match(r"\w+:", path):
            continue
        target = (page.path.parent / path).resolve() if path else page.path
        target = target / "index.html" if target.is_dir() else target
        known = anchor in pages[target].anchors if target in pages else not anchor
        if not target.is_file() or (anchor and not known):
            yield link


def test_every_page_of_the_documentation_is_a_page_of_the_site(site, pages):
    expected = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    expected = {path.with_name("index.html") if path.stem == "README" else path for path in expected}
    assert len(expected) > 40
    assert expected - {path.relative_to(site) for path in pages} == set()
    assert {path.stem for path in (site / "project").glob("*.html")} == {"about", "changelog", "contributing", "design"}


def test_every_link_and_anchor_of_the_site_leads_somewhere(pages):
    assert {str(page.path): links for page in pages.values() if (links := list(dead(page, pages)))} == {}


def test_the_site_fetches_nothing_from_the_network(site, pages):
    assert [(page.path.name, link) for page in pages.values() for link in page.fetched if "//" in link] == []
    styles = [path for path in site.rglob("*.css") if re.search(r"(url\(|@import)[^;)]*//", path.read_text())]
    assert styles == []


def test_a_link_out_of_docs_leads_to_the_text_of_the_file(site):
    assert "source/metarun/core.py.html" in (site / "project" / "about.html").read_text()
    assert "TaskDistribution" in (site / "source" / "metarun" / "core.py.html").read_text()


def test_the_search_knows_what_newcomers_look_for_and_no_source(site):
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    text = re.sub(r"<[^>]+>", "", " ".join(f"{entry['title']} {entry['text']}" for entry in entries)).lower()
    assert [words for words in LOOKED_FOR if words.lower() not in text] == []
    assert [entry["location"] for entry in entries if entry["location"].startswith("source/")] == []


def test_braces_and_underscores_of_a_meaning_stand_on_the_site_as_they_were_written(site):
    text = re.sub(r"<[^>]+>", "", (site / "settings.html").read_text())
    assert "or names: {train: [...], ...}; or protaugment_1 ... 5, as published" in text
    assert "names of classes; {test: all}" in text
    assert "+evaluation.evaluator.NAME._target_=MODULE.CLASS" in text


def test_a_name_with_two_meanings_has_in_each_table_of_settings_its_own(site):
    page = (ROOT / "docs" / "settings.md").read_text()
    in_context = page.partition("### `meta_learner=in_context`")[2].partition("\n###")[0]
    assert "channels" not in in_context and "numbers in the vector of a token" in in_context


def test_the_page_of_a_wrong_address_says_where_to_look(site):
    text = (site / "404.html").read_text()
    assert "There is no such page. Search" in text and "<a href='/index.html'>" in text


@pytest.mark.parametrize(("page", "listed"), [("results/omniglot_5w1s", False), ("settings", True), ("index", True)])
def test_a_page_of_one_table_has_the_room_of_a_list_of_headings(site, page, listed):
    (bar,) = re.findall(r'<div class="[^"]*md-sidebar--secondary"[^>]*>', (site / f"{page}.html").read_text())
    assert ("hidden" not in bar) == listed


def test_results_are_found_however_many_there_are(tmp_path):
    from scripts.site import nav_of

    assert nav_of(tmp_path, "results") == []
    for name in ("omniglot", "index", "maml/b", "maml/a"):
        path = tmp_path / "results" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    paper = {"maml": ["results/maml/a.md", "results/maml/b.md"]}
    assert nav_of(tmp_path, "results") == ["results/index.md", "results/omniglot.md", paper]


def test_a_number_of_the_choice_of_an_algorithm_stands_on_a_page_that_it_links_to():
    page = ROOT / "docs" / "choose.md"
    text = re.sub(r"<!-- receipts.*?<!-- end of receipts -->", "", page.read_text(), flags=re.S)
    numbers, measured, missing = 0, "", []
    for part in re.split(r"\n(?=\||- |\n)", text):  # a row, an entry of a list, a paragraph
        linked = {page.parent / link for link in re.findall(r"\]\(([\w/]+\.md)", part)}
        measured = "".join(path.read_text() for path in linked) or measured  # or "the same table"
        for number in re.findall(r"-?\d+\.\d+(?:e\+\d+)?", part):
            numbers += 1
            if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", measured):
                missing.append(number)
    assert numbers > 40 and missing == []


# ---- in a browser, opened as files ----


def until(browser, script: str) -> object:
    """What a script returns, once that is something."""
    end = time.monotonic() + 20
    while not (found := browser.execute_script(script)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


@pytest.mark.parametrize(("words", "page"), [
    ("resume", "tutorial_resume.html"),
    ("meta_learner.inner_lr", "settings.html"),
    ("meta_learner.inner_lr=0.1", "settings.html"),
    *((name, "settings.html") for name in ("inner_lr", "num_shots", "meta_batch_size", "data_root", "lr")),
    ("export", "apply.html"),  # decisions.html has a title with this word
    ("results.json", "run_folder.html"),
])  # fmt: skip
def test_the_search_finds_the_page_that_users_need_first_from_files_too(site, words, page):
    with opened(site / "index.html") as browser:
        browser.execute_script(
            "document.querySelector('#__search').click(); const field = document.querySelector('.md-search__input');"
            "field.focus(); field.value = arguments[0]; field.dispatchEvent(new Event('keyup', {bubbles: true}));",
            words,
        )
        links = "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.href)"
        found = until(browser, f"const found = (() => {{ {links} }})(); if (found.length) return found")
        assert page in found[0]
        assert complaints(browser) == []


@pytest.mark.parametrize(("width", "names"), [(400, "*"), (1400, "[eims]*")])
def test_no_page_is_wider_than_its_window(site, width, names):
    wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    found = [*site.glob(f"{names}.html"), *site.glob(f"algorithms/{names}.html"), *site.glob("project/*.html")]
    with opened(site / "index.html", width) as browser:
        for path in found:
            browser.get(path.as_uri())
            assert not browser.execute_script(wide), path


def test_a_wide_table_on_a_phone_shows_every_cell_with_its_column_s_name(site):
    hidden = """
        const cells = [...document.querySelectorAll("article tbody td")], edge = document.documentElement.clientWidth
        if (cells.some(cell => cell.dataset.head !== undefined))
          return cells.filter(cell => cell.getBoundingClientRect().right > edge).map(cell => cell.innerText).concat("end")
    """
    name = "return getComputedStyle(document.querySelector('td[data-head=verdict]'), '::before').content"
    with opened(site / "results" / "index.html", 400) as browser:
        for page in ("troubleshooting", "settings", "matrix", "results/index"):
            browser.get((site / f"{page}.html").as_uri())
            assert until(browser, hidden) == ["end"], page
        assert "verdict" in browser.execute_script(name)


def test_a_wide_table_shows_that_it_scrolls_wherever_one_reads_in_it(site, width=1000):
    frame = "document.querySelector('.md-typeset__scrollwrap')"
    with opened(site / "experiments.html", width) as browser:
        wide = f"const frame = {frame}; if (frame) return frame.scrollWidth - frame.clientWidth"
        assert until(browser, wide) > 0
        bar = f"return {frame}.offsetHeight - {frame}.clientHeight"
        assert browser.execute_script(bar) > 5 and browser.execute_script(f"return {frame}.offsetHeight < innerHeight")


def test_a_table_is_sorted_by_a_click_on_its_head(site):
    after = "h2#sinusoid-k--10 ~"
    table = f"document.querySelector('{after} .md-typeset__scrollwrap table, {after} table')"
    column = f"return [...{table}.tBodies[0].rows].map(row => row.cells[%d].innerText)"
    head = f"[...{table}.querySelectorAll('th')].find(cell => cell.innerText.startsWith('%s'))"
    with opened(site / "matrix.html") as browser:
        until(browser, "return document.querySelector('th[aria-sort]')")
        before = browser.execute_script(column % 1)
        browser.execute_script(f"{head % 'mse'}.click()")
        assert browser.execute_script(column % 1) == before  # the least first, as the page has it
        enter = "dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true}))"
        browser.execute_script(f"{head % 'mse'}.{enter}")
        assert browser.execute_script(column % 1) == before[::-1]
        browser.execute_script(f"{head % 'meta-learner'}.click()")
        names = browser.execute_script(column % 0)
        assert names == sorted(names) and len(names) > 10
        browser.execute_script(f"{head % 'step 10'}.click()")
        tenth = browser.execute_script(column % 5)
        filled = [float(text) for text in tenth if text]
        assert filled == sorted(filled) and tenth[: len(filled)] == [text for text in tenth if text]
