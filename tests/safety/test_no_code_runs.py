"""S01: nothing that is read runs code, imports, opens a socket or reaches a file outside; no unsafe fallback exists."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import convpeft
from measuring import counted, measured
from safety.readers import READERS

SOURCE = Path(convpeft.__file__).parent
TESTS = Path(__file__).parents[1]

# Calls that open or decode a file. A method is known by its last name, whatever it is called on.
OPENERS = {
    *("open", "fdopen", "read_bytes", "read_text", "pread", "load_file", "safe_open", "urlopen", "fromfile", "memmap"),
    *("ZipFile", "TarFile", "GzipFile", "BZ2File", "LZMAFile", "DictReader", "genops", "Unpickler"),
    *(
        "json.load",
        "json.loads",
        "tomllib.load",
        "tomllib.loads",
        "torch.load",
        "np.load",
        "pickle.load",
        "pickle.loads",
    ),
}
# Functions that open a file of our own, or one to write; everything else has to be in the list of readers.
NOT_READERS = {
    "convpeft.catalog:read_catalog": "our own source files",
    "convpeft.commands.sharing:push_run": "the card that it has just written",
    "convpeft.commands.training:train_recipe": "what the run has just written",
    "convpeft.comparing.digests:_digest": "hashes bytes that load_data has read",
    "convpeft.comparing.store:append_result": "opens what read_results reads, to append",
    "convpeft.comparing.store:read_results": "passes over what is no row, see tests/comparing/test_store.py",
    "convpeft.comparing.store:_cut_torn": "looks for the end of a line",
    "convpeft.comparing.worker:_say_into": "writes a log",
    "convpeft.data.corruptions.digital:jpeg_compression": "what it has just written, in memory",
    "convpeft.data.downloads:_receive": "a download, kept only with the published digest",
    "convpeft.data.downloads:fetch": "writes the download",
    "convpeft.deployment.executorch:load_program": "what the export has just written",
    "convpeft.deployment.weights:export_weights": "what it has just written",
    "convpeft.models.downloads:reachable": "asks whether a server answers",
    "convpeft.models.downloads:ask": "asks whether a server answers",
    "convpeft.models.weights:_refuse_packed": "looks at how the parts of a weights file are packed",
    "convpeft.reporting.html:render_report": "our own style sheet and template",
    "convpeft.training.features:write_features": "writes what read_features reads",
    "convpeft.training.locking:_open_locked": "opens the lock file that _read reads",
    "convpeft.training.locking:_is_dead": "the kernel's line on a process",
    "convpeft.training.locking:_me": "the kernel's name for this boot",
    "convpeft.writing:_flush": "brings what was written to the disk",
    "convpeft.writing:_flush_names": "brings a directory to the disk",
    "convpeft.writing:try_room": "writes, to see whether there is room",
    "convpeft.writing:write_file": "writes",
}
# Names by which a string could become code. What is left of them is named with the reason.
DANGEROUS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "import_module",
    "importlib.import_module",
}
DANGEROUS_MODULES = {
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "yaml",
    "subprocess",
    "ctypes",
    "runpy",
    "code",
}
IMPORTERS = {
    "convpeft:__getattr__": "our own modules, by a table of our own",
    "convpeft.data:__getattr__": "our own modules, by a table of our own",
    "convpeft.training:__getattr__": "our own modules, by a table of our own",
    "convpeft._torchvision:_import_torchvision": "torchvision",
    "convpeft._torchvision": "torchvision",
    "convpeft.adapters:_import_methods": "our own methods, and installed entry points",
    "convpeft.models.imported:imported_network": "the user's own function, never one that a file names",
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What happened while every hostile file was read, in a process with an audit hook."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    script, root = Path(__file__).with_name("run_attacks.py"), tmp_path_factory.mktemp("attacks")
    ended = subprocess.run(
        [sys.executable, script, root], env=environment, capture_output=True, text=True, check=False, timeout=250
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.promise("S01")
def test_hostile_files_run_no_code(outcome: dict) -> None:
    assert outcome["events"] == {}
    assert outcome["canary"] is False
    assert outcome["files"] > 700
    counted("hostile files", outcome["files"])


@pytest.mark.promise("S01", "S02")
def test_hostile_files_end_in_our_own_error(outcome: dict) -> None:
    assert outcome["errors"] == {}
    assert outcome["slowest"][0][0] < 1, outcome["slowest"]
    measured("longest seconds", outcome["slowest"][0][0])


@pytest.mark.promise("S01")
def test_the_hook_sees_what_an_ordinary_reader_would_do(outcome: dict) -> None:
    seen = {each.split(" ")[0] for each in outcome["planted"]}
    assert {"pickle.find_class", "os.system", "compile", "exec", "import", "write"} <= seen


def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in our source: the function it stands in, its dotted name, and itself."""
    found: list[tuple[str, str, ast.Call]] = []
    for file in sorted(SOURCE.rglob("*.py")):
        parts = ("convpeft", *file.relative_to(SOURCE).with_suffix("").parts)
        module = ".".join(part for part in parts if part != "__init__")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += _calls_in(tree, module, module)
    return found


def _calls_in(node: ast.AST, module: str, place: str) -> list[tuple[str, str, ast.Call]]:
    found: list[tuple[str, str, ast.Call]] = []
    for child in ast.iter_child_nodes(node):
        inner = place
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = f"{module}:{child.name}"
        elif isinstance(child, ast.Call):
            found.append((place, ast.unparse(child.func), child))
        found += _calls_in(child, module, inner)
    return found


def test_every_place_that_opens_a_file_has_a_reader_here() -> None:
    openers = {place for place, name, _ in calls() if name in OPENERS or name.rpartition(".")[2] in OPENERS}
    known = {place for reader in READERS.values() for place in reader.covers}
    assert openers - known - NOT_READERS.keys() == set(), "give each a reader in tests/safety/readers.py"
    assert known <= openers, "no longer opens anything"


@pytest.mark.promise("S01")
def test_source_has_no_way_from_a_string_to_code() -> None:
    wrong: list[str] = []
    for place, name, call in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in DANGEROUS or name.startswith(("os.exec", "os.spawn", "os.posix_spawn", "subprocess.")):
            wrong += [] if place in IMPORTERS else [f"{place}: {name}"]
        elif name in ("pickle.load", "pickle.loads", "cPickle.load", "pd.read_pickle", "load_state_dict_from_url"):
            wrong.append(f"{place}: {name}")
        elif (
            (name == "torch.load" and given.get("weights_only") != "True")
            or given.get("allow_pickle", "False") != "False"
            or given.get("shell", "False") != "False"
        ):
            wrong.append(f"{place}: {name}({given})")
    assert wrong == []


@pytest.mark.promise("S01")
def test_source_imports_nothing_that_runs_what_it_reads() -> None:
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            assert not DANGEROUS_MODULES & {name.partition(".")[0] for name in names}, file
