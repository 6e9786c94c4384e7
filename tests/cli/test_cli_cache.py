"""`sterna cache` and `sterna devices`."""

from sterna.base.cache import store
from sterna.cli.main import main


def test_list_and_clear(capsys, own_cache):
    store("kernels", "small", b"x" * 10)
    store("libraries", "large", b"x" * 3000)
    assert main(["cache"]) == 0
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.split()[:3] == ["libraries", "2.9", "KiB"]
    assert first.endswith("large")
    assert second.split()[0] == "kernels"
    assert total == f"2.9 KiB in 2 entries at {own_cache}"
    assert main(["cache", "clear", "libraries"]) == 0
    assert capsys.readouterr().out == f"removed 2.9 KiB from {own_cache}\n"
    assert main(["cache", "list", "kernels"]) == 0
    assert "small" in capsys.readouterr().out
    assert main(["cache", "clear"]) == 0
    assert main(["cache", "list"]) == 0
    assert f"0 B in 0 entries at {own_cache}" in capsys.readouterr().out


def test_an_unknown_kind(capsys):
    assert main(["cache", "clear", "kernels"]) == 2
    assert "the cache is empty" in capsys.readouterr().err
    store("kernels", "small", b"x")
    assert main(["cache", "clear", "kernel"]) == 2
    assert "has no 'kernel'; did you mean kernels?" in capsys.readouterr().err


def test_devices_say_what_they_lack(capsys):
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["cpu", "yes"]
    assert any(line.startswith("metal") and "missing: " in line for line in lines)
    toolkits = {line.split()[0] for line in lines if " toolkit: " in line}
    assert toolkits == {"cuda", "metal"}
