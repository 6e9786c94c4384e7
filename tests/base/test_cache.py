"""The cache folder: found by environment, atomic, and clearing only what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.base import cache
from sterna.base.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_stored_is_found(folder: Path) -> None:
    assert cache.lookup("kernels", "a") is None
    assert not folder.exists()
    path = cache.store("kernels", "a", b"one")
    assert path == folder / "kernels" / "a"
    cache.store("kernels", "a", b"two")
    assert cache.lookup("kernels", "a") == b"two"
    assert cache.lookup("models", "a") is None


def test_keys_tell_parts_apart() -> None:
    keys = [("ab", "c"), ("a", "bc"), ("abc",), (b"abc",), ("abc", ""), ()]
    assert len({cache.key(*parts) for parts in keys}) == len(keys)
    assert cache.key("x", b"y") == cache.key("x", b"y")


def test_entries_list_files_and_folders() -> None:
    cache.store("kernels", "small", b"1")
    big = cache.cache_dir("models") / "m"
    big.mkdir()
    (big / "weights").write_bytes(bytes(1000))
    found = [(e.kind, e.path.name, e.bytes) for e in cache.entries()]
    assert found == [("models", "m", 1000), ("kernels", "small", 1)]
    assert all(entry.mtime > 0 for entry in cache.entries())


def test_clear_one_kind_or_all() -> None:
    cache.store("kernels", "a", b"12345")
    cache.store("models", "b", b"123")
    assert cache.clear("kernels") == 5
    assert [e.kind for e in cache.entries()] == ["models"]
    assert cache.clear() == 3
    assert cache.entries() == []
    assert cache.clear() == 0


def test_clear_leaves_what_is_not_ours(folder: Path) -> None:
    """STERNA_CACHE may name a folder that holds other things."""
    cache.store("kernels", "a", b"1")
    (folder / "photos").mkdir()
    (folder / "photos" / "one").write_text("dear")
    (folder / "letter").write_text("dear")
    cache.clear()
    cache.clear("photos")
    assert sorted(p.name for p in folder.iterdir()) == ["letter", "photos"]
    assert (folder / "photos" / "one").exists()


def test_a_write_that_fails_leaves_the_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store("kernels", "a", b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        cache.store("kernels", "a", b"new")
    assert cache.lookup("kernels", "a") == b"old"
    assert [e.path.name for e in cache.entries()] == ["a"]


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a\0"])
def test_names_stay_inside(name: str) -> None:
    with pytest.raises(UsageError):
        cache.store("kernels", name, b"")
    with pytest.raises(UsageError):
        cache.cache_dir(name)


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STERNA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / "sterna"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_root() == tmp_path / "home" / ".cache" / "sterna"


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="STERNA_CACHE"):
        cache.cache_dir("kernels")
