"""What no line of the packages does, wherever somebody adds it: these are read in the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("hpo", "storage", "trainer") for path in (PROJECT / package).rglob("*.py"))

UNPICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Modules that run what is in the files that they read."""
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pandas.read_pickle", "pd.read_pickle"}
NAMED_SAFELY = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "YAML": ("typ", "safe")}
"""Calls that are safe with one argument alone, which must stand there whatever its default is today."""


def complaints(source: str) -> Iterator[str]:
    """Yield what opens a door in *source*."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (
                f"imports {name.name}" for name in node.names if name.name.split(".")[0] in {*UNPICKLING, "yaml"}
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {*UNPICKLING, "yaml"}:
            yield from (f"imports {node.module}.{name.name}" for name in node.names if name.name != "UnpicklingError")
        elif isinstance(node, ast.Call):
            yield from complaints_of_call(node)


def complaints_of_call(call: ast.Call) -> Iterator[str]:
    """Yield what is wrong with a call."""
    name = ast.unparse(call.func)
    given = {each.arg: each.value.value for each in call.keywords if isinstance(each.value, ast.Constant)}
    if name in RUNNING:
        yield f"calls {name}"
    if name in NAMED_SAFELY:
        argument, value = NAMED_SAFELY[name]
        if given.get(argument) != value:
            yield f"calls {name} without {argument}={value!r}"
    for dangerous in ("shell", "allow_pickle"):
        if any(each.arg == dangerous for each in call.keywords) and given.get(dangerous) is not False:
            yield f"calls {name} with {dangerous}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads, UnpicklingError",
        "import joblib",
        "import yaml",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.save(path, array, allow_pickle=yes)",
        "YAML()",
        "YAML(typ='unsafe')",
        "subprocess.run(command, shell=True)",
        "eval(text)",
        "os.system(text)",
    ],
)
def test_open_doors_are_seen(source: str) -> None:
    """Each of the ways in which a file or a text could run something is found."""
    assert list(complaints(source))


def test_nothing_runs_what_it_reads() -> None:
    """No package unpickles, evaluates, loads YAML that makes objects, or hands a line to a shell."""
    assert len(SOURCES) > 100
    found = {str(path.relative_to(PROJECT)): list(complaints(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}
