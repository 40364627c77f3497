"""Every error message of the library is quoted by a test: three words in a row, which few others have."""

import ast
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from convpeft import errors

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "convpeft"
ERRORS = {child.__name__ for child in errors.ConvpeftError.__subclasses__()}
SHARED = 3  # words that more messages than these have, as those of a common remedy, tell nothing of one
Words = frozenset[tuple[str, ...]]

MADE_ELSEWHERE = "puts the file before a message that another function has made"
FIGURES = "is little more than names and values; its tests quote it whole"
TOO_SHORT = {
    ("adapters.py", "method {}: {}={} is not {}. Default: {}."): FIGURES,
    ("comparing/grid.py", "{}: {}"): MADE_ELSEWHERE,
    ("data/batches.py", "{}={}: expected {} or more."): FIGURES,
    ("data/downloads.py", "{}: failed ({}). {}"): FIGURES,
    ("deployment/patching.py", "{}: makes {} as {}, {}, expected {}."): FIGURES,
    ("models/preprocessing.py", "preprocessing.{}: expected {}, got {}."): FIGURES,
    ("models/preprocessing.py", "{}: {}"): MADE_ELSEWHERE,
    ("models/source.py", "model.{}: expected {}, got {}."): FIGURES,
    ("models/source.py", "{}: {}"): MADE_ELSEWHERE,
    ("storage.py", "{}: {}"): MADE_ELSEWHERE,
    ("training/recipe.py", "{}: {}"): MADE_ELSEWHERE,
    ("training/room.py", "{} {} are free. {}"): "its beginning and end are variables; its tests quote it whole",
}


def text_of(message: ast.expr) -> str:
    """The message as it is written, with {} for what is filled in."""
    match message:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
        case _:
            return "{}"


def messages_of(source: str) -> list[str]:
    """What the calls of the error classes in a module say."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    return [
        text_of(call.args[0])
        for call in calls
        if (call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")) in ERRORS
    ]


def triples(text: str) -> Words:
    """Every three words in a row; nothing that is filled in lies between them."""
    found: set[tuple[str, ...]] = set()
    for piece in text.split("{}"):
        words = re.findall(r"[^\W_]+", piece)
        found.update(zip(words, words[1:], words[2:], strict=False))
    return frozenset(found)


def quotes_of(source: str) -> Words:
    """Every three words in a row of the strings of a test file, regular expressions as what they match."""
    tree = ast.parse(source)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings quote nothing
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    ]
    return frozenset().union(*(triples(text.replace("\\", "")) for text in strings))


def unquoted(modules: dict[str, str], quotes: Words) -> list[tuple[str, str]]:
    """Messages of three words in a row or more, none of which are quoted; with the module they are in."""
    messages = [(name, text) for name, source in modules.items() for text in messages_of(source)]
    count = Counter(words for _, text in messages for words in triples(text))
    missing: list[tuple[str, str]] = []
    for name, text in messages:
        words = triples(text)
        own = {each for each in words if count[each] <= SHARED} or words
        if words and not own & quotes:
            missing.append((name, text))
    return missing


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    return {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}


def quoted_in(files: Iterable[Path]) -> Words:
    return frozenset().union(*(quotes_of(file.read_text(encoding="utf-8")) for file in files))


def test_every_message_is_quoted_by_a_test(modules: dict[str, str]) -> None:
    assert sum(len(messages_of(source)) for source in modules.values()) > 250
    missing = unquoted(modules, quoted_in(file for file in TESTS.rglob("*.py") if file != Path(__file__)))
    assert not missing, "\n".join(f"{name}: {text}" for name, text in missing)


def test_messages_of_fewer_words_are_known(modules: dict[str, str]) -> None:
    short = {(name, text) for name, source in modules.items() for text in messages_of(source) if not triples(text)}
    assert short == TOO_SHORT.keys()


MADE_UP = """
def check(value, name):
    if value < 0:
        raise OptionError(f"{name}={value}: purple elephants dance at noon. Get the file again.")
    return errors.DataError(f"{name}: " + "is green all over")
"""


@pytest.mark.parametrize(
    ("test", "missing"),
    [
        ("", {"purple", "green"}),
        ('"""purple elephants dance"""', {"purple", "green"}),
        ("# purple elephants dance", {"purple", "green"}),
        ('match = "elephants dance"', {"purple", "green"}),
        ('match = f"dance {at} noon"', {"purple", "green"}),
        ('match = r"elephants dance at noon\\. Get"', {"green"}),
        ('assert "is green all" in said', {"purple"}),
        ('assert ("elephants dance " "at noon") in said and "is green all over" in said', set()),
    ],
)
def test_message_that_no_test_quotes_is_reported(test: str, missing: set[str]) -> None:
    found = unquoted({"made_up.py": MADE_UP}, quotes_of(test))
    assert {word for word in ("purple", "green") if any(word in text for _, text in found)} == missing


def test_remedy_of_many_messages_tells_nothing_of_one() -> None:
    names = ["one lost tensor", "two torn tables", "three burnt folders", "four drowned files"]
    source = "\n".join(f'DataError("{name}. Get it again.")' for name in names)
    found = unquoted({"made_up.py": source}, quotes_of('"Get it again"; x = ["Get it again", "two torn tables"]'))
    assert [text for _, text in found] == [f"{name}. Get it again." for name in names if name[:3] != "two"]
