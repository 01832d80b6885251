"""Record lines survive encoding and decoding, and no other line is accepted."""

from __future__ import annotations

import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import records
from bench.records import Dtype, Environment, Line, NewerFormatError, Op, Point, decode, decode_all, digest, encode
from tests.builders import ENVIRONMENT, TRAFFIC, complete, deepep_plan, lines

KINDS = [kind.__struct_config__.tag for kind in typing.get_args(records.Line)]


@given(lines())
def test_a_decoded_line_equals_the_encoded_one(line: records.Line) -> None:
    text = encode(line)
    assert b"\n" not in text
    assert decode(text) == line
    assert encode(decode(text)) == text


@given(lines(), st.data())
def test_a_torn_line_is_a_value_error(line: records.Line, data: st.DataObject) -> None:
    text = encode(line)
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(ValueError, match=r".") as caught:
        decode(text[:cut])
    assert not isinstance(caught.value, NewerFormatError)


def test_every_cut_of_a_record_is_refused() -> None:
    text = encode(complete(deepep_plan())[-1])
    for cut in range(len(text)):
        with pytest.raises(ValueError, match=r"."):
            decode(text[:cut])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"record"',
        b"{}",
        b'{"type":"recorrd","v":1}',
        b'{"type":"traffic","tokens":[["1"]],"v":1}',
        b'{"type":"traffic","tokens":[[1.5]],"v":1}',
        b'{"type":"traffic","tokens":null,"v":1}',
        b'{"type":"traffic","v":1}',
        b'{"type":"traffic","tokens":[],"v":"1"}',
        b'{"type":"traffic","tokens":[],"v":1}{}',
        b'{"type":"traffic","tokens":[],"v":true}',
        b'{"type":"host","hostname":"\xff\xfe"}',
        b"\x00\x00\x00\x00",
    ],
)
def test_a_line_of_another_format_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        decode(text)
    assert not isinstance(caught.value, NewerFormatError)


def test_a_measurement_that_also_failed_cannot_be_read() -> None:
    plain = msgspec.to_builtins(complete(deepep_plan())[-1])
    plain["outcome"]["kind"] = "both"
    with pytest.raises(ValueError, match="Invalid value 'both'"):
        decode(msgspec.json.encode(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_of_a_newer_version_is_refused_by_name(kind: str) -> None:
    newer = records.FORMAT_VERSION + 1
    text = msgspec.json.encode({"type": kind, "v": newer})
    message = rf"^record version {newer}, this program reads up to {records.FORMAT_VERSION}$"
    with pytest.raises(NewerFormatError, match=message):
        decode(text)


def test_a_newer_line_is_refused_even_if_every_field_fits() -> None:
    newer = msgspec.structs.replace(TRAFFIC, v=records.FORMAT_VERSION + 1)
    with pytest.raises(NewerFormatError, match=r"^record version 4, this program reads up to 3$"):
        decode(encode(newer))


def test_an_unknown_type_of_a_newer_version_is_newer_and_not_damaged() -> None:
    with pytest.raises(NewerFormatError):
        decode(b'{"type":"something_new","v":99}')


points = st.builds(
    Point,
    backend=st.sampled_from(["deepep", "alltoall"]),
    op=st.sampled_from(Op),
    dtype=st.sampled_from(Dtype),
    knobs=st.dictionaries(st.sampled_from(["num_sms", "nvl_chunk"]), st.integers(0, 3)),
)


@given(points, points)
def test_digests_are_equal_exactly_when_the_values_are(point: Point, other: Point) -> None:
    assert (digest(point) == digest(other)) == (point == other)


@given(points)
def test_a_digest_does_not_depend_on_the_order_of_a_mapping(point: Point) -> None:
    turned = msgspec.structs.replace(point, knobs=dict(reversed(point.knobs.items())))
    assert digest(turned) == digest(point)


def test_a_digest_is_the_same_in_every_version_of_this_program() -> None:
    point = Point("deepep", Op.DISPATCH, Dtype.BF16, {"num_sms": 24, "nvl_chunk": 8, "nvl_buffer": 256})
    assert point.label == "deepep/dispatch/bf16/num_sms=24,nvl_chunk=8,nvl_buffer=256"
    assert digest(point) == "1bfe2a43e18ff8e4"
    assert digest("a", "b") != digest(["a", "b"])


@pytest.mark.parametrize("line", complete(deepep_plan())[:5], ids=lambda line: type(line).__name__)
def test_a_line_of_version_1_is_read_as_it_was_written(line: Line) -> None:
    earlier = msgspec.structs.replace(line, v=1)
    assert b'"v":1' in encode(earlier)
    assert decode(encode(earlier)) == earlier
    assert decode_all(encode(earlier)) == [earlier]


def test_a_run_that_is_resumed_by_a_newer_version_stays_in_its_environment() -> None:
    assert msgspec.structs.replace(ENVIRONMENT, v=1).id == ENVIRONMENT.id


@pytest.mark.parametrize("field", [field for field in Environment.__struct_fields__ if field != "v"])
def test_the_id_of_an_environment_depends_on_every_field(field: str) -> None:
    old = getattr(ENVIRONMENT, field)
    new = {"torch": "0"} if isinstance(old, dict) else not old if isinstance(old, bool) else f"{old}0"
    changed = msgspec.structs.replace(ENVIRONMENT, **{field: new})
    assert changed.id != ENVIRONMENT.id
