"""The rooms of the house and its style: who may import whom, how long files, functions and names are.

Imports are read from the code; those for type checkers alone do not count.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = ("objectives", "trees", "errors", "counter", "modes", "annotations", "files", "paths", "process")
# Who may not import whom, and what to do instead.
FORBIDDEN = [
    ("core", lambda name: room(name) not in GROUND, "core holds types alone; put what uses them above it"),
    *(
        (ground, lambda name: room(name) not in GROUND, "a ground file knows nothing of metarun but ground files")
        for ground in GROUND
    ),
    ("models", lambda name: room(name) in ("tasks", "config"), "give a network what it needs as an argument"),
    ("models", lambda name: room(name) == "execution", "the execution decides for models, by metarun.modes"),
    ("inner", lambda name: room(name) == "execution", "the execution decides for inner loops, by metarun.modes"),
    ("tasks", lambda name: room(name) == "meta_learners", "a task knows no learner; evaluation.suite has both"),
    ("meta_learners", lambda name: room(name) == "tasks", "a learner sees one episode, whatever its task"),
    *(
        (
            who,
            lambda name: room(name) in ("execution", "config", "output"),
            "take plain arguments, and return values: config, execution and output are above",
        )
        for who in ("tasks", "meta_learners")
    ),
    *(
        (
            who,
            lambda name: room(name) == "applied",
            "a finished run is loaded by commands alone; take what is needed of it as an argument",
        )
        for who in (
            "config",
            "output",
            "training",
            "evaluation",
            "execution",
            "tasks",
            "meta_learners",
            "control",
            "models",
        )
    ),
    ("", lambda name: room(name) == "commands", "nothing is below a command; move what is shared to another room"),
]
WITHOUT_TORCH = [f"config.{name}" for name in ("compose", "targets", "schema", "help", "trust")]
WITHOUT_TORCH += [f"evaluation.{name}" for name in ("intervals", "records", "student")]
WITHOUT_TORCH += ["files", "errors", "annotations", "paths", "process", "commands.main", "commands.app"]
WITHOUT_TORCH += [
    "config.choices",
    "output.ledger",
    "output.tables",
    "commands.app_runs",
    "commands.runs",
    "commands.show",
]
WITHOUT_TORCH += ["commands.diff", "commands.compare", "commands.tensorboard", "commands.report"]
WITHOUT_TORCH += ["commands.search", "commands.report_search", "search.kept"]


@cache
def modules() -> dict[str, Path]:
    """Every module of metarun by its name within it; a package is the name of its folder."""
    paths = sorted((ROOT / "metarun").rglob("*.py"))
    names = [path.relative_to(ROOT / "metarun").with_suffix("").as_posix().replace("/", ".") for path in paths]
    return {name.removesuffix("__init__").rstrip("."): path for name, path in zip(names, paths, strict=True)}


def room(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def imports(path: Path, late: bool = True) -> Iterator[str]:
    """What a module imports, in full; with ``late`` also within functions."""

    def within(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if not late and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from within(child)

    return within(ast.parse(path.read_text()))


@cache
def ours(name: str, late: bool = True) -> frozenset[str]:
    """The modules of metarun that the module ``name`` imports."""
    found = set()
    for full in imports(modules()[name], late):
        if full.startswith("metarun."):
            inside = full.removeprefix("metarun.")
            found.add(inside if inside in modules() else inside.rpartition(".")[0])
    return frozenset(found - {"", name})


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_a_module_imports_only_from_below(name):
    for who, refused, instead in FORBIDDEN:
        if room(name) == who or (not who and room(name) not in ("commands", "__main__")):
            wrong = sorted(filter(refused, ours(name) - {name}))
            assert not wrong, f"metarun.{name} imports {', '.join(wrong)}: {instead}."


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            circle = " -> ".join([*above[above.index(name) :], name])
            pytest.fail(f"a circle: {circle}. Move what both need into a module below them.")
        if name not in done:
            for other in sorted(ours(name)):
                visit(other, (*above, name))
            done.add(name)

    for name in modules():
        visit(name, ())


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_answers_before_a_run_begins_does_not_load_torch(name):
    reached, waiting = set(), [name]
    while waiting:
        if (module := waiting.pop()) not in reached:
            reached.add(module)
            heavy = [full for full in imports(modules()[module], late=False) if room(full) in ("torch", "torchvision")]
            assert not heavy, (
                f"metarun.{name} reaches metarun.{module}, which imports torch: import it in the function."
            )
            waiting += ours(module, late=False)


def test_what_every_run_imports_does_not_load_torchvision():
    reached, waiting = set(), ["commands.train"]
    while waiting:
        if (module := waiting.pop()) not in reached:
            reached.add(module)
            found = [full for full in imports(modules()[module], late=False) if room(full) == "torchvision"]
            assert not found, f"metarun.{module} imports torchvision, which takes seconds: import it in the function."
            waiting += ours(module, late=False)


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_a_file_can_be_read_in_one_sitting(name):
    assert len(modules()[name].read_text().splitlines()) <= 250, "split it: the section with a comment above it first"


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_a_function_can_be_seen_at_once(name):
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.FunctionDef):
            said = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (len(said.splitlines()) if said else 0)
            assert lines <= 40, f"{node.name} has {lines} lines; split it"


@pytest.mark.parametrize("name", modules())
def test_every_module_and_every_public_class_and_function_says_what_it_is(name):
    tree = ast.parse(modules()[name].read_text())
    kinds = (ast.ClassDef, ast.FunctionDef)
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert [getattr(node, "name", name) for node in (tree, *public) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_the_name_of_a_test_is_a_sentence_of_at_most_80_letters(path):
    names = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert [name for name in names if name.startswith("test_") and len(name) > 80] == []
