import os
import pickle
import pickletools
from contextlib import suppress

import numpy as np
import pytest

from convpeft.data.pickles import read_plain_pickle
from convpeft.errors import DataError

TABLE = {
    b"data": np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8),
    b"labels": [1, 2, 3, 300],
    b"filenames": [b"a.png", b"b.png"],
    b"batch_label": b"testing batch 1 of 1",
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_table_reads_as_it_was_written(protocol):
    found = read_plain_pickle(pickle.dumps(TABLE, protocol=protocol), "x")
    assert np.array_equal(found["data"], TABLE[b"data"])
    assert found["labels"] == TABLE[b"labels"]
    assert found["filenames"] == TABLE[b"filenames"]


def test_array_in_column_order_keeps_its_places():
    table = {b"data": np.asfortranarray(TABLE[b"data"])}
    assert np.array_equal(read_plain_pickle(pickle.dumps(table, protocol=2), "x")["data"], TABLE[b"data"])


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.promise("S01")
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load, __import__])
def test_pickle_that_names_anything_else_is_refused_unrun(tmp_path, protocol, function):
    target = tmp_path / "ran"
    content = pickle.dumps({b"data": Evil(function, f"touch {target}")}, protocol=protocol)
    with pytest.raises(DataError, match="which is not allowed"):
        read_plain_pickle(content, "x")
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "holds a list, expected a dictionary"),
        (pickle.dumps({b"data": np.zeros((2, 2))}, protocol=2), "not of unsigned bytes"),
        (pickle.dumps({b"data": np.array([None])}, protocol=2), "not of unsigned bytes"),
        (pickle.dumps({b"x": bytearray(3)}, protocol=5), "forbidden opcode"),
        (pickle.dumps({1: 1.5}, protocol=2), "forbidden opcode"),
        (b"", "is no plain pickle"),
        (b"\x80\x02}.extra", None),
        (b"\x80\x02}", "is no plain pickle"),
        (b"\x80\x02}K\x01K\x01s.", "a key of the dictionary is no text but a int"),
        (b"\x80\x02)q\0" + b"h\0h\0\x86q\0" * 60 + b"}h\0K\x01s.", "a key of the dictionary is no text but a tuple"),
        (b"\x80\x02" + b"]" * 400_002 + b".", "takes more than 400,000 steps"),
        (b"}p-1\n.", "remembers an object under a number out of range"),
        (b"\x80\x02}K\x01s.", "takes more from the stack than there is"),
        (b"\x80\x02]K\x01K\x02s.", "SETITEMS on a list"),
        (b"\x80\x02}}b.", "gives a state to what is no array"),
        (b"\x80\x02})R.", "calls what is no name"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "calls a class that is only named"),
        (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0xX\x04\0\0\0utf8\x86R.", "bytes in another encoding than latin1"),
        (b"\x80\x04K\x01\x8c\x01x\x93.", "a int where a text belongs"),
        (b"\x80\x04\x8c\x03o\ns\x8c\x06system\x93.", "names o.s.system, which is not allowed"),
        (pickle.dumps({b"x": TABLE[b"data"].reshape(1, 1, 2, 3, 4)}, protocol=2), "an array has a shape that is none"),
    ],
)
def test_other_content_is_a_named_error(content, message):
    if message is None:  # what follows the end is not read
        assert read_plain_pickle(content, "x") == {}
        return
    with pytest.raises(DataError, match=message) as refusal:
        read_plain_pickle(content, "x")
    assert len(str(refusal.value).splitlines()) == 1


def test_false_memo_index_costs_no_memory():
    content = bytearray(pickle.dumps({b"labels": [b"x"] * 2, **{str(i): str(i) for i in range(300)}}, protocol=2))
    at = next(position for code, _, position in pickletools.genops(bytes(content)) if code.name == "LONG_BINPUT")
    content[at + 1 : at + 5] = b"\xf0\xff\xff\x7f"
    assert len(read_plain_pickle(bytes(content), "x")) == 301


@pytest.mark.promise("S02")
def test_mutated_pickles_raise_only_our_own_error():
    rng = np.random.default_rng(0)
    contents = [pickle.dumps(TABLE, protocol=protocol) for protocol in (0, 2, 4)]
    for step in range(3000):
        mutated = bytearray(contents[step % 3])
        for place in rng.integers(0, len(mutated), 2):
            mutated[place] = rng.integers(256)
        with suppress(DataError):
            read_plain_pickle(bytes(mutated), "x")
