"""Sizes, boundaries and forms of the code: the rules of CONTRIBUTING.md that no import shows."""

from __future__ import annotations

import ast
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

from proxy_app.store import migrations

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "proxy_app"
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Lines of code; comments, blank lines and docstrings are free.
MEDIAN, P90, LONGEST = 6, 25, 60
MODULE = 300
PARAMETERS = 5
# Modules above their limit as they are today: a number here may only become smaller.
BIG_MODULES: dict[str, int] = {}
# Functions with more parameters than that, likewise: a dataclass of options, or less to do.
WIDE_FUNCTIONS: dict[str, int] = {}
# Where any exception may be caught, each with a reason beside the code: threads and loops that have to go on, and
# the edges where a failure becomes an answer.
CATCH_ALL = {
    "services/admin/in_flight.py": 1,
    "services/bookkeeper.py": 1,
    "services/breakers.py": 1,
    "services/catalog.py": 1,
    "services/fleet.py": 1,
    "services/flights.py": 1,
    "services/hydrate.py": 1,
    "services/limiter.py": 1,
    "services/refresh.py": 2,
    "store/leases.py": 1,
    "store/threads.py": 1,
    "upstream/aside.py": 1,
}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), path, ast.parse(path.read_text())


def docstring_lines(tree: ast.AST) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            text = node.body[0]
            found.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return found


def code_lines(path: Path, tree: ast.Module) -> set[int]:
    """The lines that hold code: something other than a comment, a docstring or nothing."""
    idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in idle and token.type != tokenize.ENCODING:
                found.update(range(token.start[0], token.end[0] + 1))
    return found - docstring_lines(tree)


def functions() -> Iterator[tuple[str, int, Function]]:
    """Each function with its name and its lines of code, the signature not counted."""
    for name, path, tree in modules():
        lines = code_lines(path, tree)
        for node in ast.walk(tree):
            if isinstance(node, Function):
                body = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
                yield f"{name}:{node.lineno} {node.name}", len(lines.intersection(body)), node


def test_functions_are_short() -> None:
    sizes = {name: size for name, size, _ in functions()}
    ordered = sorted(sizes.values())
    longest = sorted(sizes, key=lambda name: -sizes[name])[:10]
    shown = [f"{sizes[name]} {name}" for name in longest]
    assert statistics.median(ordered) <= MEDIAN, shown
    assert ordered[int(len(ordered) * 0.9)] <= P90, shown
    assert ordered[-1] <= LONGEST, shown


def test_modules_are_short() -> None:
    sizes = {name: len(code_lines(path, tree)) for name, path, tree in modules()}
    offenders = {name: size for name, size in sizes.items() if size > BIG_MODULES.get(name, MODULE)}
    assert not offenders
    assert not [name for name in BIG_MODULES if sizes.get(name, 0) <= MODULE], "these need no exception any more"


def parameters(node: Function) -> int:
    given = node.args
    names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_functions_take_few_parameters() -> None:
    counts = {f"{name.partition(':')[0]} {node.name}": parameters(node) for name, _, node in functions()}
    wide = {name: count for name, count in counts.items() if count > PARAMETERS}
    assert not {name: count for name, count in wide.items() if count > WIDE_FUNCTIONS.get(name, 0)}
    assert not WIDE_FUNCTIONS.keys() - wide.keys(), "these need no exception any more"


def catches_everything(node: ast.ExceptHandler) -> bool:
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    names = {None if each is None else ast.unparse(each) for each in caught}
    return bool(names & {None, "Exception", "BaseException"})


def raises_again(node: ast.ExceptHandler) -> bool:
    """A handler that cleans up and ends in a bare `raise` hides nothing."""
    last = node.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_everything_is_caught_only_at_the_named_boundaries() -> None:
    found: dict[str, int] = {}
    for name, _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and catches_everything(node) and not raises_again(node):
                found[name] = found.get(name, 0) + 1
    assert found == CATCH_ALL


CLIENTS = re.compile(
    r"(Session|PoolManager|Redis|Redis\.from_url|StrictRedis|connect|Database|Registry|RedisGate|UpstreamClient)$"
)


def test_no_client_is_made_when_a_module_is_imported() -> None:
    """Workers are forked from a process that has imported everything: a connection made there is shared by all."""
    made = []
    for name, _, tree in modules():
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef | Function) or is_main_block(statement):
                continue
            for node in ast.walk(statement):
                if isinstance(node, ast.Call) and CLIENTS.search(ast.unparse(node.func)):
                    made.append(f"{name}:{node.lineno} {ast.unparse(node.func)}")
    assert not made


def is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def test_modules_say_what_they_are_for() -> None:
    bare = [name for name, _, tree in modules() if not ast.get_docstring(tree)]
    assert not bare


def test_there_is_no_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc", "tools", "lib", "core"}
    assert not [name for name, path, _ in modules() if path.stem in drawers]


# -- migrations ------------------------------------------------------------------------------------


def migration_files() -> list[Path]:
    return sorted(path for path in (ROOT / "migrations").iterdir() if path.suffix == ".py")


def test_migrations_are_numbered_without_gaps() -> None:
    names = [path.stem for path in migration_files()]
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert migrations.names() == names, "one of them has a name that the loader does not take"


def test_a_migration_is_one_documented_function_that_takes_the_database() -> None:
    """And uses nothing of the package: code moves on, a migration that has run somewhere never changes."""
    for path in migration_files():
        tree = ast.parse(path.read_text())
        defined = [node for node in tree.body if isinstance(node, Function)]
        assert [node.name for node in defined] == ["migrate"], path.name
        assert ast.get_docstring(defined[0]), path.name
        assert "proxy_app" not in path.read_text(), path.name


# -- Lua -------------------------------------------------------------------------------------------


def lua_files() -> list[Path]:
    return sorted((PACKAGE / "store" / "scripts").glob("*.lua"))


def lua_header(path: Path) -> str:
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if not line.startswith("--"):
            break
        lines.append(line)
    return "\n".join(lines)


def test_lua_scripts_say_what_their_keys_and_arguments_are() -> None:
    assert lua_files()
    for path in lua_files():
        used = set(re.findall(r"\b(KEYS|ARGV)\[(\d+)\]", path.read_text().replace(lua_header(path), "")))
        for kind, number in used:
            assert kind in lua_header(path), f"{path.name}: {kind}[{number}] is not explained"


def test_lua_scripts_touch_only_keys_that_they_were_given() -> None:
    """A key that is built inside a script lies in another slot of a cluster."""
    for path in lua_files():
        calls = re.findall(r"redis\.p?call\(\s*['\"](\w+)['\"]\s*,\s*(['\"][^'\"]*['\"])", path.read_text())
        fixed = [call for call in calls if call[0].upper() not in ("TIME", "SCRIPT")]
        assert not fixed, f"{path.name}: {fixed}"


def test_every_lua_script_is_loaded_by_its_name() -> None:
    code = "\n".join(path.read_text() for path in (PACKAGE / "store").glob("*.py"))
    unused = [path.stem for path in lua_files() if f'"{path.stem}"' not in code]
    assert not unused
