"""Check .pt2 archives of torch.export before torch opens them.

`torch.export.load` unpickles sample inputs and weights, evaluates size expressions with sympy, and compiles guards
and names into Python. Here an archive is accepted only if it contains what `write_torch` writes: raw weights, ATen
operators, and sizes and guards of plain arithmetic. torch then gets a new archive with only these members.
"""

import ast
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from raincast.system.files import check_zip

MAX_JSON = 200 * 1024**2
"""Bytes; networks of the configs have 0.5 to 5 MB."""
MAX_TEXT = 100_000
"""Maximum number of characters of a size or guard."""

_ROOT = "network"
_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_OTHERS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_RAW = re.compile(r"data/(weights/weight|constants/tensor)_\d+|extra/[\w.]+")

_NAME = re.compile(r"[\w.+\-]*")
_ATEN = re.compile(r"torch\.ops\.aten\.([a-z]\w*|_assert_tensor_metadata|_to_copy|_softmax|__(and|or|xor)__)\.\w+")
_NOT_ATEN = re.compile(
    r"from_file|set_\w*|resize\w*|as_strided\w*|empty_strided|record_stream|unsafe_\w*|data|item"
)
_OPERATORS = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|torch\.sym_(max|min|not|float|int|ite)|math\.(trunc|floor|ceil)"
)
_FUNCTIONS = re.compile(
    "Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|PythonMod|CleanDiv|FloorDiv|IntTrueDiv|FloatTrueDiv|CeilToInt"
    "|FloorToInt|TruncToInt|ToFloat|Max|Min|Abs|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Equality|Unequality|StrictLessThan"
    "|LessThan|StrictGreaterThan|GreaterThan|Identity|Where|min|max|int|float|bool"
)
_SYNTAX = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.Attribute, ast.Subscript,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def checked_archive(path: Path) -> tuple[io.BytesIO, str]:
    """Return a new archive of the accepted members of `path` for `torch.export.load`, and its metadata as text.

    Raises ValueError if it contains anything that `write_torch` does not write. No code in it is run.
    """
    with path.open("rb") as file:
        check_zip(file)
        with zipfile.ZipFile(file) as archive:
            members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    if unknown := [name for name in members if not (_RAW.fullmatch(name) or name in _known())]:
        raise ValueError(f"it holds {unknown[0]}, which export.py does not write")
    if missing := [name for name in (_PROGRAM, *_CONFIGS) if name not in members]:
        raise ValueError(f"it holds no {missing[0]}")
    if members.get(_SAMPLES):
        raise ValueError(
            "it holds a pickle of sample inputs, which runs code. Export it again with: python export.py"
        )
    for name in _CONFIGS:
        _check_weights(json.loads(members[name]))
    members[_PROGRAM] = _checked_program(members[_PROGRAM])
    members[_SAMPLES] = b""
    return _packed(members), members.get("extra/raincast.json", b"{}").decode()


def _known() -> tuple[str, ...]:
    return (_PROGRAM, _SAMPLES, *_CONFIGS, *_OTHERS)


def _packed(members: dict[str, bytes]) -> io.BytesIO:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{_ROOT}/{name}", content)
    packed.seek(0)
    return packed


def _check_weights(config: Any) -> None:
    for weight, payload in config["config"].items():
        if payload["use_pickle"] is not False or not _RAW.fullmatch(
            f"data/weights/{payload['path_name']}".replace("weights/tensor", "constants/tensor")
        ):
            raise ValueError(f"{weight} is a pickle, which runs code")
        _check(payload, "weight")


def _checked_program(content: bytes) -> bytes:
    if len(content) > MAX_JSON:
        raise ValueError(f"its program has {len(content):,} bytes, more than {MAX_JSON:,}")
    try:
        program = json.loads(content)
        for node in program["graph_module"]["graph"]["nodes"]:
            _check_target(node["target"])
            node["metadata"] = {}  # it has names of modules and functions that torch would look up
        for guard in program["guards_code"]:
            _check_expression(guard)
        guards = program.pop("guards_code")
        _check(program, "program")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its program is not in torch.export's layout: {error!r}") from error
    return json.dumps(program | {"guards_code": guards}).encode()


def _check_target(target: str) -> None:
    aten = _ATEN.fullmatch(target)
    if not (aten and not _NOT_ATEN.fullmatch(aten[1])) and not _OPERATORS.fullmatch(target):
        raise ValueError(f"it calls {target}, which no network of raincast does")


def _check(node: Any, key: str) -> None:
    """Raise ValueError if a string is neither a plain name nor a checked expression: names become Python code."""
    if isinstance(node, dict):
        for name, value in node.items():
            _check(name, "name")
            _check(value, name)
    elif isinstance(node, list):
        for value in node:
            _check(value, key)
    elif isinstance(node, str):
        if key == "expr_str":
            _check_expression(node)
        elif key in ("in_spec", "out_spec", "context"):
            _check(json.loads(node) if node else "", "spec")
        elif not _NAME.fullmatch(node):
            raise ValueError(f"{key}={node[:80]!r} is not a name")


def _check_expression(text: str) -> None:
    """Raise ValueError if a size or guard is more than arithmetic of known functions and input sizes."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"a size has {len(text):,} characters, more than {MAX_TEXT:,}")
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:80]!r} is not an expression") from error
    functions = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        allowed = isinstance(node, _SYNTAX)
        if isinstance(node, ast.Call):
            allowed = _is_allowed(node)
        elif isinstance(node, ast.Attribute):
            allowed = id(node) in functions
        elif isinstance(node, ast.Name):
            allowed = (
                id(node) in functions
                or node.id in ("L", "True", "False")
                or bool(re.fullmatch(r"[su]\d+", node.id))
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            allowed = bool(_NAME.fullmatch(node.value))
        elif isinstance(node, ast.Pow):
            allowed = False  # 9**9**9 would exhaust the memory
        if not allowed:
            raise ValueError(f"{text[:80]!r} is not a plain size or guard")


def _is_allowed(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr == "size" and not call.args
    if not (isinstance(call.func, ast.Name) and _FUNCTIONS.fullmatch(call.func.id)):
        return False
    # allow small constant powers; Pow(9, Pow(9, 9)) would exhaust the memory
    return call.func.id != "Pow" or re.fullmatch(r"Integer\(-?[0-9]\)", ast.unparse(call.args[-1])) is not None
