"""Hooks of MkDocs: what the site of docs/ shows of files outside docs/, and the results that there are.

Links in docs/ work on the repository's pages, so some of them lead out of docs/. README and its like become pages of the
site; of every other file or folder that a page links to, the site has a page with its text, which its search leaves out.
"""

import os
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PROJECT = {  # file of the repository: page of the site
    "README.md": "project/about.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "metarun/DESIGN.md": "project/design.md",
    "metarun/CHANGELOG.md": "project/changelog.md",
}
PLACE = {page: path for path, page in PROJECT.items()}
LINK = re.compile(r"(?P<begin>\]\()(?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")
CODE = re.compile(r"(^```.*?^```|``.+?``|`[^`\n]+`)", re.M | re.S)
BEHIND = re.compile(r"decisions\.md|fidelity\.md|project/(?:changelog|design)\.md|results/.+/.+")  # in the search
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json"}


def on_config(config: Any) -> Any:
    """Put every page below docs/results into the navigation, however many there are."""
    pages = nav_of(Path(config.docs_dir), "results")
    index, *boards = [page for page in pages if isinstance(page, str)]
    papers = [room for room in pages if isinstance(room, dict)]
    found = [index, {"By benchmark": boards}, {"By paper": papers}]
    for entry in config.nav:
        entry["Results"] = [*found, *entry["Results"]] if "Results" in entry else entry.get("Results")
    config.nav = [{name: value for name, value in entry.items() if value is not None} for entry in config.nav]
    return config


def nav_of(docs: Path, folder: str) -> list[Any]:
    """The pages of a folder by name, index first, then those of its folders, each under a heading of its own."""
    pages = sorted((docs / folder).glob("*.md"), key=lambda path: (path.stem != "index", path.stem))
    rooms = [path for path in sorted((docs / folder).glob("*")) if path.is_dir() and any(path.rglob("*.md"))]
    inner = [{room.name: nav_of(docs, f"{folder}/{room.name}")} for room in rooms]
    return [f"{folder}/{page.name}" for page in pages] + inner


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file of the project, and for each other file and folder that a page links to."""
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    pages |= {page: (ROOT / path).read_text() for path, page in PROJECT.items()}
    linked = {target for page, text in pages.items() for target in targets(page, text)}
    made = {page: pages[page] for page in PLACE}
    made |= {f"source/{path}.md": source(path) for path in sorted(linked) if not path.startswith("docs/")}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def targets(page: str, text: str) -> set[str]:
    """The files and folders of the repository, other than pages of the project, that a page links to."""
    found = (join(dirname(place(page)), m["path"]) for part in CODE.split(text)[::2] for m in LINK.finditer(part))
    return {path for path in map(normpath, found) if path not in PROJECT and (ROOT / path).exists()}


def place(page: str) -> str:
    """Where a page's text lies in the repository."""
    return PLACE.get(page, f"docs/{page}")


def source(path: str) -> str:
    """A page with the text of a file, or of every file of a folder that git would show."""
    files = [ROOT / path] if (ROOT / path).is_file() else sorted((ROOT / path).rglob("*.yaml"))
    head = f"---\ntitle: {path}\nsearch: {{exclude: true}}\n---\n\n# {path}\n"
    return head + "".join(
        f"\n## {file.relative_to(ROOT / path)}\n" * (len(files) > 1)
        + f"\n````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text()}\n````\n"
        for file in files
    )


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to pages of the site; the ages of its receipts in small print."""
    name = page.file.src_uri
    page.meta["search"] = {"boost": 0.0001 if BEHIND.fullmatch(name) else 1.0} | page.meta.get("search", {})
    alone, flat = page.parent is None, len(re.findall(r"^## ", markdown, re.M)) < 2
    # either would name this page alone, or one heading of it
    page.meta["hide"] = ["navigation"] * alone + ["toc"] * flat
    markdown = markdown.replace("\n<!-- end of receipts -->", "\n{: .receipts }")
    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(lambda m: m["begin"] + inside(name, m["path"]) + (m["anchor"] or ""), p) for p in parts[::2]]
    return "".join(parts)


def on_post_template(output: str, template_name: str, **_: Any) -> str:
    """Say on the page of a wrong address where to look."""
    where = "<p>There is no such page. Search for it above, or begin at the <a href='/index.html'>start</a>.</p>"
    return output.replace("</h1>", f"</h1>\n{where}", 1) if template_name == "404.html" else output


def inside(page: str, path: str) -> str:
    """A link of a page of the site, which is written as for the repository."""
    target = normpath(join(dirname(place(page)), path))
    if not (ROOT / target).exists():
        return path  # MkDocs says so
    outside = PROJECT.get(target, f"source/{target}.md")
    return relpath(target[len("docs/") :] if target.startswith("docs/") else outside, dirname(page) or os.curdir)
