"""What would explode a parser is refused before it is parsed, and what is sound is read as it was."""

from __future__ import annotations

import io
import json
import tomllib
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib import format as npy

from prunebench.bench.bounded import DEPTH, DIGITS, MEMBERS, PARTS, VALUES, arrays_of, json_of, toml_of, unzipped_size
from prunebench.bench.interop.pickled import LEAVES, STEPS, refuse_explosive
from prunebench.bench.protocol import PROTOCOLS
from tests.support.nets import toml

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**50), 10**50) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(VALUE)
def test_json_of_ours_comes_back(value):
    for indent in (None, 1):
        assert json_of(json.dumps(value, indent=indent).encode()) == value


@pytest.mark.parametrize("name", PROTOCOLS)
def test_toml_of_ours_comes_back(name):
    assert toml_of(toml(PROTOCOLS[name]).encode())["name"] == name


def test_strings_and_comments_may_hold_what_they_like():
    many = "[" * 100 + "1" * 2000 + ".a" * 100
    assert json_of(json.dumps({"a": f'{many}"\\'}).encode()) == {"a": f'{many}"\\'}
    for text in (f'"{many}"', f"'{many}'", f'"""{many}"\n""q"""', f"'''{many}'\n''q'''"):
        assert many in toml_of(f"a = {text} # {many} \"\nb = '''x'''\n".encode())["a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * DEPTH + "]" * DEPTH, None),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), f"nests deeper than {DEPTH}"),
        ('{"a":' * 100_000, "nests deeper"),
        ('"' + "[" * 1000, "Unterminated string"),
        ("[" + "1" * DIGITS + "]", None),
        ("[" + "1" * (DIGITS + 1) + "]", f"a number of more than {DIGITS} digits"),
        ("[" + "1." + "0" * DIGITS + "1]", "a number of more than"),
        ("[" + "0," * VALUES + "0]", f"more than {VALUES} values"),
        ('{"a":1,"a":2}', "a key appears twice"),
        ('{"b":[{"a":1,"a":1}]}', "a key appears twice"),
        ("\ud800", None),
    ],
)
def test_json_is_limited(text, said):
    data = text.encode(errors="surrogatepass")
    if said is None and text != "\ud800":
        assert json_of(data) == json.loads(data)
        return
    with pytest.raises(ValueError, match=said):
        json_of(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (".".join("a" * PARTS) + " = 1", None),
        (".".join("a" * (PARTS + 1)) + " = 1", f"a key of more than {PARTS} parts"),
        ("[" + " . ".join(["'b'"] * (PARTS + 1)) + "]", "a key of more than"),
        ("a" + ".a" * 30_000 + " = 1", "a key of more than"),
        ("a = {" + "b={" * DEPTH, "nests deeper"),
        ("a = " + "[" * 60_000, "nests deeper"),
        ("a = " + "1" * (DIGITS + 1), "a number of more than"),
        ("\n".join(f"k{i} = 1" for i in range(VALUES + 1)), "more than"),
        ("a = [" + ", ".join(["0.5"] * 1000) + "]", None),
    ],
)
def test_toml_is_limited(text, said):
    if said is None:
        assert toml_of(text.encode())
        return
    with pytest.raises(ValueError, match=said):
        toml_of(text.encode())


def test_a_limit_is_seen_in_little_memory():
    """The twin is the parser itself, which takes hundreds of times the file."""
    text = b"a" + b".a" * 3000 + b" = 1"
    tracemalloc.start()
    with pytest.raises(ValueError, match="parts"):
        toml_of(text)
    ours = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    tomllib.loads(text.decode())
    theirs = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ours < 100 * len(text) < 1000 * len(text) < theirs


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def head(shape, kind="|b1", rest=b""):
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + rest


def test_arrays_of_ours_come_back():
    arrays = {"a": np.arange(6).reshape(2, 3), "b/c": np.zeros(0, bool), "d": np.asfortranarray(np.eye(3))}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    found = arrays_of(buffer.getvalue(), 10_000)
    assert list(found) == list(arrays)
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items()
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped(a=bytes(1001)), "unpacks to more than 1000 bytes"),
        (zipped(a=head((10**12,))), r"holds no array of \(1000000000000,\)"),
        (zipped(a=head((4, 2**62))), "holds no array"),
        (zipped(a=head((1,), "|O", b"\0" * 8)), "holds no array"),
        (zipped(a=head((-1, -8), rest=bytes(8))), "reshape|negative|dimension"),
        (zipped(a=b"\x93NUMPY\x03\0" + bytes(100)), "a header of version"),
        (zipped(a=b"no array"), "magic"),
        (b"PK\x01\x02" * (MEMBERS + 1), f"more than {MEMBERS} members"),
        (b"", "not a zip"),
        (zipped(a=head((8,), rest=bytes(8)))[:-30], "not a zip"),
    ],
)
def test_arrays_are_limited(data, said):
    with pytest.raises(ValueError, match=said):
        arrays_of(data, 1000)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_stands_twice_could_hide_a_number():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for byte in (b"\0", b"\1"):
            archive.writestr("a.npy", head((1,), rest=byte))
    with pytest.raises(ValueError, match="appears twice"):
        arrays_of(buffer.getvalue(), 1000)


def test_a_member_that_lies_about_its_size_gives_no_more():
    """The directory says 100 bytes, and a million zeros follow: no more than 100 are unpacked."""
    data = bytearray(zipped(a=head((1_000_000,), rest=bytes(1_000_000))))
    at = data.rindex(b"PK\x01\x02") + 24
    assert int.from_bytes(data[at : at + 4], "little") > 1_000_000
    data[at : at + 4] = (100).to_bytes(4, "little")
    assert unzipped_size(bytes(data)) == 100
    with pytest.raises(ValueError, match=r".+"):
        arrays_of(bytes(data), 1000)


def nested(levels: int) -> bytes:
    """A dict with a tuple of tuples as its key, each level twice the one below, all from one memo."""
    steps = [b"\x80\x02}K\x01K\x01\x86"]
    steps += [b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(levels)]
    return b"".join([*steps, b"K\x01s."])


def test_tuples_that_grow_are_refused_before_they_are_hashed():
    assert len(nested(34)) < 200
    with pytest.raises(ValueError, match=f"nests more than {LEAVES} values"):
        refuse_explosive(nested(34))
    refuse_explosive(nested(8))


def test_the_twin_a_key_is_hashed_leaf_by_leaf():
    class Leaf:
        hashed = 0

        def __hash__(self):
            Leaf.hashed += 1
            return 0

    key = Leaf()
    for _ in range(12):
        key = (key, key)
    assert {key: 1} and Leaf.hashed == 2**12


def test_what_torch_saves_is_followed_to_its_end():
    state = {"state_dict": torch.nn.Linear(3, 2).state_dict(), "epoch": 3, "groups": [{"lr": 0.1, "params": [0, 1]}]}
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=new)
        refuse_explosive(buffer.getvalue())
        kept = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        assert kept["epoch"] == 3


def test_pickles_without_end_are_refused():
    with pytest.raises(ValueError, match=f"more than {STEPS} steps"):
        refuse_explosive(b"\x80\x02" + b"N0" * STEPS)


@pytest.mark.parametrize("data", [b"", b".", b"\x80\x02.", b"h\0.", b"\xff" * 9, b"t.", b"(((", b"\x80\x02}s."])
def test_what_is_no_pickle_is_left_to_torch(data):
    refuse_explosive(data)
