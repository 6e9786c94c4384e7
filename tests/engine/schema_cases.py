"""Schemas, texts that fit them and texts that do not: for the server and for browsers alike."""

from typing import Any

NODE = {"anyOf": [{"type": "null"}, {"items": {"$ref": "#/$defs/n"}, "type": "array"}]}
SCHEMAS: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "object"}, ["{}", '{"x": [1, null]}'], ["[]", "1"]),
    ({"type": "integer"}, ["0", "-12"], ["1.5", "01", '"1"']),
    (True, ["1", '"x"', "[]"], ["", "x"]),
    (
        {"properties": {"a": {"type": "integer"}}, "type": "object"},
        ["{}", '{"a": 1}'],
        ['{"b": 1}', '{"a":1}', '{"a": 1 }'],
    ),
    (
        {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
        ['{"b": 1}', '{"a": [], "ab": 2, "": 3}'],
        ["[]", '{"b": 1, "a": 2}'],
    ),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"b": {"type": "null"}}, "required": ["b"]},
            ]
        },
        ['{"a": 1, "b": null}'],
        ['{"a": 1}', '{"b": null}'],
    ),
    ({"$ref": "#/$defs/n", "$defs": {"n": NODE}}, ["null", "[[null], []]"], ["[1]"]),
    ({"type": "integer", "minimum": -3, "maximum": 120}, ["-3", "0", "99", "120"], ["-4", "121"]),
    ({"type": "integer", "exclusiveMinimum": 3}, ["4", "10", "99999"], ["3", "0", "-5"]),
    ({"type": "string", "minLength": 1, "maxLength": 2}, ['"a"', '"é\\n"'], ['""', '"abc"']),
    ({"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"ac"']),
    ({"type": "string", "pattern": '^["\\\\]+$'}, ['"\\"\\\\"'], ['"a"']),
    ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-13-01"', '"x"']),
    ({"enum": ["a", 1, None, {"x": [1]}]}, ['"a"', "1", "null", '{"x": [1]}'], ['"b"']),
    ({"type": "array", "items": {"const": 1}, "minItems": 1, "maxItems": 2}, ["[1, 1]"], ["[]"]),
    (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
        ["[]", "[1]", "[1, 2]"],
        ["[2]", "[1, 2, 3]"],
    ),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
    (
        {
            "type": "object",
            "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}},
            "required": ["b"],
        },
        ['{"b": 2}', '{"a": 1, "b": 2}', '{"b": 2, "c": 3}'],
        ["{}", '{"a": 1}', '{"a": 1, "c": 3}'],
    ),
]
