"""Which model a request names, in all four forms, and what is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.dialects.body import asked
from proxy_app.errors import BadRequest

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


def model_of(body: bytes, content_type: str = "", query: str = "") -> str:
    return asked(body, content_type, query).model


def multipart(*parts: tuple[str, bytes], boundary: str = "XX") -> bytes:
    pieces = [f'--{boundary}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n'.encode() + v for n, v in parts]
    return b"\r\n".join([*pieces, f"--{boundary}--\r\n".encode()])


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["", JSON, FORM, "text/plain", "nonsense", "multipart/form-data; boundary=XX"])
def test_json_is_read_whatever_the_content_type(content_type: str) -> None:
    assert model_of(b' \r\n\t{"model":"tiny"}', content_type) == "tiny"


@pytest.mark.parametrize(
    "body",
    [
        b'{"MODEL":"tiny"}',
        b'{"Model":"tiny"}',
        b'{"mode\\u006c":"tiny"}',
        b'{"model":"t\\u0069ny"}',
        b'{"x":{"model":"no"},"model":"tiny"}',
        b'{"x":"{\\"model\\":\\"no\\"}","model":"tiny"}',
        b'{"x":[{"model":1,"model":2}],"model":"tiny"}',
        b'{"model":"tiny"} and more',
        b'{"model":"tiny"}{"model":"other"}',
        b'{"x":1e999,"y":-0,"z":18446744073709551616,"model":"tiny"}',
        b'{"models":"no","mode":"no","model ":"no","model":"tiny"}',
        b'{"x":"a","x":"b","model":"tiny"}',
    ],
)
def test_the_one_model_at_the_top_level_is_found(body: bytes) -> None:
    assert model_of(body, JSON) == "tiny"


@pytest.mark.parametrize("body", [b"{}", b'{"model":null}', b'{"model":""}', b'{"x":{"model":"no"}}', b'{"name":"no"}'])
def test_a_request_that_names_none_gives_an_empty_name(body: bytes) -> None:
    assert model_of(body, JSON) == ""


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"a"}',
        b'{"model":"a","model":"b"}',
        b'{"model":"a","MODEL":"b"}',
        b'{"model":"a","x":{"y":[1,2]},"Model":"a"}',
        b'{"mode\\u006c":"a","model":"a"}',
        b'{"model":"a","mode\\u006c":"a"}',
        b'{"model":null,"model":"a"}',
        b'{"model":"a","model":null}',
        b'{"x":1,"x":1,"model":"a","model":"a"}',
        b'{"model":"a","x":"' + b"y" * 1000 + b'","model":"b"}',
        b'{"model":"' + b"y" * 1000 + b'","model":"' + b"y" * 1000 + b'"}',
        b'{"model":"a" , "model" : "a" } trailing',
    ],
)
def test_two_keys_that_mean_the_model_are_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        model_of(body, JSON)


def test_the_long_s_and_the_kelvin_sign_do_not_make_another_model() -> None:
    # Neither letter is in "model": such a key is another key.
    assert model_of('{"\u212aodel":"no","model":"tiny"}'.encode(), JSON) == "tiny"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"model"',
        b'{"model":',
        b'{"model":"tiny"',
        b'{"model":"tiny",}',
        b"{'model':'tiny'}",
        b'{model:"tiny"}',
        b'{"model":5}',
        b'{"model":true}',
        b'{"model":{}}',
        b'{"model":["tiny"]}',
        b"[]",
        b'[{"model":"tiny"}]',
        b"5",
        b'"tiny"',
        b"true",
        b"nonsense",
        b"NaN",
        b'{"x":NaN,"model":"tiny"}',
        b"\xef\xbb\xbf{}",
        b"\x00\x01\x02",
        b'{"x":' * 5000 + b"1" + b"}" * 5000,
    ],
)
def test_what_is_no_json_object_with_a_text_as_model_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        model_of(body, JSON)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.text(max_size=10) | st.sampled_from(["model", "MODEL", "mode", "messages", "x"])
pairs = st.lists(st.tuples(keys, values), max_size=8)


def encode(members: list[tuple[str, Any]], *, ascii_only: bool, blanks: str) -> bytes:
    text = ("," + blanks).join(
        blanks + json.dumps(key, ensure_ascii=ascii_only) + blanks + ":" + json.dumps(value, ensure_ascii=ascii_only)
        for key, value in members
    )
    return ("{" + text + blanks + "}").encode("utf-8", "surrogatepass")


def expected(members: list[tuple[str, Any]]) -> str | None:
    """What a full parse says: the name, or None for a refusal."""
    named = [value for key, value in members if key.lower() == "model"]
    if len(named) > 1 or (named and not isinstance(named[0], str | None)):
        return None
    return (named[0] if named else "") or ""


@given(pairs, st.booleans(), st.sampled_from(["", " ", "\r\n\t"]))
def test_the_quick_reader_agrees_with_a_full_parse(
    members: list[tuple[str, Any]], ascii_only: bool, blanks: str
) -> None:
    body = encode(members, ascii_only=ascii_only, blanks=blanks)
    wanted = expected(members)
    if wanted is None:
        with pytest.raises(BadRequest):
            model_of(body, JSON)
    else:
        assert model_of(body, JSON) == wanted


@given(st.binary(max_size=200), st.sampled_from(["", JSON, FORM, "multipart/form-data; boundary=XX"]))
def test_no_bytes_do_more_than_be_refused(body: bytes, content_type: str) -> None:
    with suppress(BadRequest):
        assert isinstance(model_of(body, content_type), str)


def test_a_body_of_many_megabytes_is_read_to_its_end() -> None:
    body = json.dumps({"x": "y" * 3_000_000, "model": "tiny"}).encode()
    assert model_of(body, JSON) == "tiny"
    with pytest.raises(BadRequest):
        model_of(body[:-1] + b',"MODEL":"other"}', JSON)
    with pytest.raises(BadRequest):
        model_of(body[:-1], JSON)


# --- forms and query -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=XX",
        'Multipart/Form-Data; charset=utf-8; Boundary="XX"',
        "multipart/form-data;boundary=XX; charset=utf-8",
    ],
)
def test_a_multipart_form_names_its_model(content_type: str) -> None:
    body = multipart(("file", b'{"model":"no"}\r\n--X\x00'), ("model", b"whisper"), ("models", b"no"))
    assert model_of(body, content_type, "models=no") == "whisper"


def test_a_multipart_form_without_a_model_does_not_look_elsewhere() -> None:
    assert model_of(multipart(("file", b"x")), "multipart/form-data; boundary=XX", "models=no") == ""


@pytest.mark.parametrize("query", ["model=other", "a=b&model=other", "%6dodel=other", "mod%65l="])
def test_a_model_beside_the_form_is_refused(query: str) -> None:
    """Go's FormValue would take that one."""
    with pytest.raises(BadRequest):
        model_of(multipart(("model", b"a")), "multipart/form-data; boundary=XX", query)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (multipart(("model", b"a"), ("model", b"b")), "multipart/form-data; boundary=XX"),
        (multipart(("model", b"a"), ("model", b"a")), "multipart/form-data; boundary=XX"),
        (multipart(("model", b"a")), "multipart/form-data"),
        (multipart(("model", b"a")), "multipart/form-data; boundary=YY"),
        (multipart(("model", b"a"))[:-6], "multipart/form-data; boundary=XX"),
    ],
)
def test_a_broken_multipart_form_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(BadRequest):
        model_of(body, content_type)


names = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=40)


@given(names, st.binary(max_size=100))
def test_a_multipart_model_is_read_whatever_is_beside_it(name: str, data: bytes) -> None:
    body = multipart(("file", data), ("model", name.encode()), boundary="0f81c2d3")
    assert model_of(body, "multipart/form-data; boundary=0f81c2d3") == name


@given(names.filter(str.strip))
def test_an_urlencoded_form_names_its_model(name: str) -> None:
    assert model_of(urlencode({"x": "1", "model": name}).encode(), FORM, "model=no") == name


@given(names.filter(str.strip))
def test_a_query_names_a_model_where_the_body_names_none(name: str) -> None:
    assert model_of(b"", "", urlencode({"model": name})) == name
    assert model_of(b"x=1", FORM, urlencode({"model": name})) == name


def test_json_goes_before_the_query() -> None:
    assert model_of(b'{"model":"a"}', FORM, "model=b") == "a"


@pytest.mark.parametrize(
    ("body", "query"), [(b"model=a&model=b", ""), (b"", "model=a&model=b"), (b"x=1", "model=a&model=a")]
)
def test_a_model_that_stands_twice_is_refused(body: bytes, query: str) -> None:
    with pytest.raises(BadRequest):
        model_of(body, FORM, query)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; xboundary=AA; boundary=XX",
        "multipart/form-data; boundary=XX; boundary=AA",
        "multipart/form-data; boundary=XX; boundary*=us-ascii''AA",
        "multipart/form-data; boundary=XX; boundary*0=AA",
    ],
)
def test_a_form_with_two_boundaries_is_refused(content_type: str) -> None:
    with pytest.raises(BadRequest, match="several boundaries"):
        model_of(multipart(("model", b"a")), content_type)


@pytest.mark.parametrize("name", ["name*=utf-8''model", 'name="x"; name="model"', "name*0=mo; name*1=del"])
def test_a_field_whose_name_readers_differ_about_is_refused(name: str) -> None:
    odd = b"--XX\r\nContent-Disposition: form-data; " + name.encode() + b"\r\n\r\nsecret\r\n"
    with pytest.raises(BadRequest, match="stand once, and plainly"):
        model_of(odd + multipart(("model", b"allowed")), "multipart/form-data; boundary=XX")


def test_a_route_of_forms_reads_no_json() -> None:
    with pytest.raises(BadRequest):
        asked(b'{"model":"a"}', "multipart/form-data; boundary=XX", is_form=True)


def test_what_stands_behind_a_page_of_blanks_is_json_too() -> None:
    assert model_of(b" " * 100_000 + b'{"model":"a","x":"&model=b&"}', FORM) == "a"
