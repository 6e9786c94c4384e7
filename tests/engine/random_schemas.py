"""JSON schemas drawn at random, as deep as a few objects and lists."""

from hypothesis import strategies as st

names = st.sampled_from(["a", "b", "c d", "é", '"'])
leaves = st.one_of(
    st.sampled_from([{"type": t} for t in ("null", "boolean", "integer", "number", "string")]),
    st.builds(lambda v: {"enum": v}, st.lists(st.sampled_from([1, "x", None, [1]]), min_size=1)),
    st.builds(
        lambda lo, n: {"type": "integer", "minimum": lo, "maximum": lo + n},
        st.integers(-99, 99),
        st.integers(0, 99),
    ),
    st.builds(
        lambda lo, n: {"type": "string", "minLength": lo, "maxLength": lo + n},
        st.integers(0, 4),
        st.integers(0, 9),
    ),
    st.sampled_from(
        [
            {"type": "string", "pattern": "^[a-c]{2,5}$"},
            {"type": "string", "format": "date"},
            {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5, "maximum": 99},
            {"const": {"k": [True]}},
        ]
    ),
)


def larger(inner):
    def made(properties, needed, closed):
        required = [name for name, needs in zip(properties, needed) if needs]
        plain = {"type": "object", "properties": properties, "required": required}
        return plain | ({"additionalProperties": False} if closed else {})

    return st.one_of(
        st.builds(
            made,
            st.dictionaries(names, inner, max_size=3),
            st.lists(st.booleans(), min_size=3, max_size=3),
            st.booleans(),
        ),
        st.builds(
            lambda i, n: {"type": "array", "items": i, "maxItems": n}, inner, st.integers(0, 3)
        ),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    )
