"""What was ever wrong with a file stays wrong in one sentence; what a byte changes, too.

The corpus is kept in `corpus/READER/`: `make_corpus.py` writes it, and what a fuzzer finds is
added. Its files are read one by one, and are the seeds of a fuzzer that runs a little each time;
set STERNA_FUZZ to a number of examples to let it run longer.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readers import CORPUS, READERS

from sterna.base.errors import Error

FILES = [(p.parent.name, p.name) for p in sorted(CORPUS.glob("*/*"))]
EXAMPLES = int(os.environ.get("STERNA_FUZZ", "30"))
SECONDS = 5.0


def refused(reader: str, folder: Path, data: bytes) -> bool:
    """Whether a file is refused, in one sentence and soon; any other exception is a failure."""
    began = time.process_time()
    try:
        READERS[reader].run(folder, data)
        told = ""
    except Error as error:
        told = str(error)
    assert time.process_time() - began < SECONDS
    assert "\n" not in told
    assert len(told) < 2000
    return told != ""


def test_every_reader_has_good_files_and_bad_ones() -> None:
    bad = {reader for reader, name in FILES if not name.startswith("good")}
    assert bad == set(READERS)
    lone = {"adapter", "program"}  # read with weights, and with kernels, by their own tests
    assert {reader for reader, name in FILES if name.startswith("good")} == set(READERS) - lone


@pytest.mark.parametrize(("reader", "name"), FILES)
def test_a_kept_file(reader: str, name: str, tmp_path: Path) -> None:
    data = (CORPUS / reader / name).read_bytes()
    assert refused(reader, tmp_path, data) != name.startswith("good")


@pytest.mark.parametrize("reader", READERS)
@settings(derandomize=True, max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_changed_files(
    reader: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    seeds = [name for kind, name in FILES if kind == reader]
    whole = bytearray((CORPUS / reader / data.draw(st.sampled_from(seeds))).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole)))
        change = data.draw(st.sampled_from(("put", "cut", "insert", "repeat")))
        part = data.draw(st.binary(min_size=1, max_size=8))
        if change == "put":
            whole[at : at + len(part)] = part
        elif change == "cut":
            del whole[at : at + data.draw(st.integers(1, 64))]
        elif change == "insert":
            whole[at:at] = part
        else:
            whole[at:at] = whole[at : at + 32]
    folder = tmp_path_factory.getbasetemp() / f"changed-{reader}"
    folder.mkdir(exist_ok=True)
    refused(reader, folder, bytes(whole))
