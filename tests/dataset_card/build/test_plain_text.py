"""Texts and ids out of anything: markup, control characters, words for nothing, hostile sizes."""

from __future__ import annotations

import time
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moon2_dataset.build.plain_text import MAX_ID, clean_id, clean_ids, clean_text, parsed_text


@pytest.mark.parametrize("value, text", [
    ("<p>Warm &amp; <b>soft</b>.</p><ul><li>A</li><li>B</li></ul>", "Warm & soft. A B"),
    ("H<sub>2</sub>O<br/>bottle", "H2O bottle"),
    ("&lt;p&gt;escaped twice&lt;/p&gt;", "escaped twice"),
    ("<style>p {color: red}</style>mug<script>alert('<b>')</script>", "mug"),
    ("size < 5 and > 3, I <3 it", "size < 5 and > 3, I <3 it"),
    ("a <b", "a <b"),
    ("R&D, AT&T, A&notes, Tom &amp Jerry", "R&D, AT&T, A&notes, Tom &amp Jerry"),
    ("<p>mug<!-- never closed", "mug never closed"),
    ("<![foo[ mug", "<![foo[ mug"),
    ("  red\tmug \n\r\x0b big\xa0one ", "red mug big one"),
    ("a\x00b\x1fc\x85d", "a b c d"),
    ("mug \ud800\udc00 \udfff!", "mug !"),
    ("\ufeffmu\u200bg \u202egum", "mug gum"),
    ("👩‍👧 mug", "👩‍👧 mug"),
    (None, ""), (float("nan"), ""), (float("inf"), ""), ("NaN", ""), (" null ", ""), ("None", ""), ("N/A", ""),
    ("None of these", "None of these"), ("Nil", ""), ("", ""),
    (501, "501"), (12.0, "12"), (2.5, "2.5"), (Decimal("1.50"), "1.50"), (date(2026, 1, 2), "2026-01-02"),
    (b"caf\xc3\xa9 \xff", "café \ufffd"), (["a", "b"], "a b"), ([], ""),
])  # fmt: skip
def test_one_line_of_plain_text(value, text):
    assert clean_text(value, 100) == (text, True)


@pytest.mark.parametrize("value", [True, {"a": 1}, [1, 2], [["a"]], pytest.param(10**5000, id="huge")])
def test_what_is_no_text_is_told(value):
    assert clean_text(value, 100) == ("", False)


def test_long_texts_are_cut_and_told():
    assert clean_text("ab " * 50, 10) == ("ab ab ab a", False)
    assert clean_text("<b>" + "x" * 10 + "</b>" * 3, 10) == ("x" * 10, True)
    assert clean_text("x" + " " * 10_000, 10) == ("x", False)  # what is beyond the window is not looked at


@pytest.mark.parametrize("piece", [
    "<!--", "<", "</", "<a ", "<b>", "<b>&", "&#", "&amp;", "<![CDATA[", "<a href='", "<script>", "<!DOCTYPE ", "<?",
    "<a b='c", "<a b=", "<!", "<a/", "<title>", "\ud800", "\x00", "a ", "<a" + " b" * 50, "&lt;!--",
])  # fmt: skip
def test_hostile_texts_of_ten_megabytes_are_cheap(piece):
    text = piece * (10_000_000 // len(piece))
    start = time.process_time()
    clean_text(text, 1_000)
    clean_text(text, 10_000)
    clean_text(text[:65_000], 10_000)  # under the window: nothing is cut
    assert time.process_time() - start < 5  # a pass that is quadratic takes minutes


@pytest.mark.parametrize("value, identity", [
    ("A-1", "A-1"), (" 12 ", "12"), (12, "12"), (12.0, "12"), ("12.0", "12"), ("1.5", "1.5"), (2.5, "2.5"),
    (Decimal("7"), "7"), ("v1.0", "v1.0"), (b"x7", "x7"), ("a\x00b", "a b"), ("\ud800", ""), (10**25, str(10**25)),
    (None, ""), (float("nan"), ""), ("nan", ""), (True, ""), (["a"], ""), ({"a": 1}, ""), ("x" * 201, ""),
    (10**300, ""),
    ("x" * 200, "x" * 200), (1e300, ""), ("商品 1", "商品 1"),
])  # fmt: skip
def test_ids(value, identity):
    assert clean_id(value) in (identity, "1e+300")
    assert len(clean_id(value)) <= MAX_ID


@pytest.mark.parametrize("value, ids", [
    ("1|2|3", ["1", "2", "3"]), ("1, 2,2", ["1", "2"]), ('["a b", 7, null]', ["a b", "7"]), ("['x', 'y']", ["x", "y"]),
    ([1, 2.0, None, "c"], ["1", "2", "c"]), ("", []), (None, []), (5, ["5"]), ("1 2;3", ["1", "2", "3"]),
])  # fmt: skip
def test_lists_of_ids(value, ids):
    assert clean_ids(value) == ids


def test_lists_and_objects_written_as_text():
    assert parsed_text('{"a": [1]}') == {"a": [1]} and parsed_text("['a', None]") == ["a", None]
    assert (
        parsed_text("mug") is None and parsed_text("[" * 100_000) is None and parsed_text("[__import__('os')]") is None
    )
    assert parsed_text("[" * 90 + "]" * 90) is not None and parsed_text("{" + "1:" * 50_000) is None


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(value=ANYTHING, limit=st.integers(1, 50))
def test_anything_gives_one_clean_line(value, limit):
    text, _ = clean_text(value, limit)
    assert len(text) <= limit and text == " ".join(text.split())
    text.encode("utf-8")
    assert clean_text(text, limit)[0] in (text, "") or "<" in text or "&" in text
    identity = clean_id(value)
    assert clean_id(identity) == identity or "&" in identity
    assert all(clean_ids(value)) and not any("\ud800" <= letter <= "\udfff" for letter in identity)
