"""Exported networks from strangers: torch.export.load unpickles, evaluates and compiles what it finds."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raincast import export
from raincast.models import ConvLSTM

Members = dict[str, bytes]


class Owned:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


CODE = "__import__('os').mkdir('owned')"


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """Of the file of a small layer."""
    path = tmp_path_factory.mktemp("pt2") / "layer.pt2"
    torch.manual_seed(0)
    export.write_torch(export.trace_layer(ConvLSTM(1, 2)), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def pack(members: Members, path: Path, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"layer/{name}", content)
    return path


def sample_inputs(members: Members) -> None:
    members["data/sample_inputs/model.pt"] = pickle.dumps(Owned())


def zipped_sample_inputs(members: Members) -> None:
    torch.save((Owned(),), "sample.pt")
    members["data/sample_inputs/model.pt"] = Path("sample.pt").read_bytes()


def pickled_weight(members: Members) -> None:
    name = "data/weights/model_weights_config.json"
    config = json.loads(members[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    members[name] = json.dumps(config).encode()
    torch.save(Owned(), "sample.pt")
    members["data/weights/weight_0"] = Path("sample.pt").read_bytes()


def pickled_constant(members: Members) -> None:
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    members["data/constants/model_constants_config.json"] = json.dumps({"config": {"x": payload}}).encode()
    members["data/constants/opaque_obj_0"] = pickle.dumps(Owned())


def legacy_weights(members: Members) -> None:
    torch.save({"x": Owned()}, "sample.pt")
    members["data/weights/model.pt"] = Path("sample.pt").read_bytes()


def library(members: Members) -> None:
    members["data/aotinductor/model/a.so"] = b"\x7fELF"


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Members], None]:
    def spoil(members: Members) -> None:
        program = json.loads(members["models/model.json"])
        change(program)
        members["models/model.json"] = json.dumps(program).encode()

    spoil.__name__ = change.__name__
    return spoil


@changed
def guard(program: dict[str, Any]) -> None:
    program["guards_code"].append(CODE)


@changed
def guard_by_attributes(program: dict[str, Any]) -> None:
    program["guards_code"].append("L.__class__.__base__.__subclasses__()[0] == 1")


@changed
def size(program: dict[str, Any]) -> None:
    values = program["graph_module"]["graph"]["sym_int_values"]
    for value in values.values():
        value["as_expr"] = {"expr_str": CODE, "hint": None}
    values["x"] = {"as_expr": {"expr_str": CODE, "hint": None}}


@changed
def huge_size(program: dict[str, Any]) -> None:
    power = "Pow(Integer(9), Pow(Integer(9), Integer(9)))"
    program["graph_module"]["graph"]["sym_int_values"]["x"] = {"as_expr": {"expr_str": power, "hint": None}}


@changed
def operator_on_files(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


@changed
def function(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"


@changed
def name_of_a_node(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["name"] = f"x = {CODE}; y"


@changed
def name_of_an_argument(program: dict[str, Any]) -> None:
    program["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [f"x={CODE}", "state"]


@changed
def structure_of_the_arguments(program: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("builtins.tuple", f"x={CODE}")


ATTACKS = [
    *(sample_inputs, zipped_sample_inputs, pickled_weight, pickled_constant, legacy_weights, library),
    *(guard, guard_by_attributes, size, huge_size, operator_on_files, function),
    *(name_of_a_node, name_of_an_argument, structure_of_the_arguments),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_nothing_in_an_exported_network_runs(
    attack: Callable[[Members], None], members: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoilt = dict(members)
    attack(spoilt)
    with pytest.raises(ValueError, match="it holds|runs code|it calls|not a plain size|is not a name"):
        export.read_torch(pack(spoilt, tmp_path / "a.pt2"))
    assert not (tmp_path / "owned").exists()


def test_what_export_writes_holds_no_pickle_and_is_read_whatever_its_zip_is_called(
    members: Members, tmp_path: Path
) -> None:
    assert members["data/sample_inputs/model.pt"] == b""
    run, _ = export.read_torch(pack(members, tmp_path / "a.pt2"))
    assert len(run(torch.zeros(1, 1, 1, 4, 5).numpy(), *([torch.zeros(1, 2, 4, 5).numpy()] * 2))) == 3


def test_a_spoilt_or_compressed_archive_is_refused(members: Members, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compressed"):
        export.read_torch(pack(members, tmp_path / "a.pt2", compression=zipfile.ZIP_DEFLATED))
    path = pack(members, tmp_path / "b.pt2")
    content = bytearray(path.read_bytes())
    content[content.index(members["data/weights/weight_0"]) + 3] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        export.read_torch(path)
    path.write_bytes(content[:1000])
    with pytest.raises(ValueError, match="zip"):
        export.read_torch(path)


def test_the_older_format_of_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.pt2", "w") as archive:
        archive.writestr("version", "8.14")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickle.dumps(Owned()))
    with pytest.raises(ValueError, match="it holds"):
        export.read_torch(Path("a.pt2"))
    assert not Path("owned").exists()
