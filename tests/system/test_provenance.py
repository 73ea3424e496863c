from pathlib import Path

import pytest

from raincast.system import provenance


def test_the_hash_of_code_changes_with_the_packages_that_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    for name in ("metrics/deep/fss.py", "output/page.py", "schema.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"NAME = {name!r}\n")
    hashed = provenance.code_hash.__wrapped__  # without what it remembers
    whole, metrics, module = hashed(), hashed("metrics"), hashed("schema")
    assert len({whole, metrics, module}) == 3
    (tmp_path / "output" / "page.py").write_text("NAME = 1\n")
    assert hashed("metrics") == metrics and hashed("schema") == module and hashed() != whole
    (tmp_path / "metrics" / "deep" / "fss.py").write_text("NAME = 1\n")
    (tmp_path / "schema.py").write_text("NAME = 1\n")
    assert hashed("metrics") != metrics and hashed("schema") != module


def test_memory_is_that_of_this_process():
    assert 0.01 < provenance.peak_memory_gib() < 1000  # GiB: neither bytes nor KiB
