"""Which column of a log is what: events in lines of their own, or counted in a column each."""

from __future__ import annotations

import pytest

from moon2_dataset.build.log_columns import LOG_FIELDS, read_count
from moon2_dataset.build.mapping import resolve


def mapped(header, *lines, **given):
    columns = header.split(",")
    sample = [dict(zip(columns, line.split(","), strict=True)) for line in lines]
    return resolve(columns, sample, LOG_FIELDS, given, name="log.csv")


@pytest.mark.parametrize("header, line, expected", [
    ("query,product_id,event,timestamp", "red mug,12,click,1700000000", {"text": "query", "event": "event"}),
    ("qid,keyword,item_id,behavior_type,shown_items", "1,mug,7,buy,8|9",
     {"query_id": "qid", "text": "keyword", "event": "behavior_type", "shown": "shown_items"}),
    ("Suchbegriff,Artikelnummer,Anzahl", "Becher,7,3", {"text": "Suchbegriff", "count": "Anzahl"}),
    ("搜索词,商品id,行为", "马克杯,7,click", {"text": "搜索词", "event": "行为"}),
    ("query,product_id,kind", "red mug,12,purchase", {"event": "kind"}),
])  # fmt: skip
def test_names_of_columns_in_several_languages(header, line, expected):
    mapping, _ = mapped(header, *[line] * 6)
    assert {field: mapping[field][0] for field in expected} == expected and "product_id" in mapping


@pytest.mark.parametrize("header, line, expected", [
    ("query,product_id,impressions,clicks,purchases", "mug,7,120,9,2",
     {"purchases": "purchases", "clicks": "clicks", "exposures": "impressions"}),
    ("search_term,sku,views,orders", "mug,7,40,1", {"purchases": "orders", "exposures": "views"}),
    ("query,sku,views,impressions,conversions", "mug,7,3,40,1",
     {"purchases": "conversions", "clicks": "views", "exposures": "impressions"}),
    ("query,product_id,shown,clicked,purchased", "mug,7,1,1,0",
     {"purchases": "purchased", "clicks": "clicked", "exposures": "shown"}),
    ("search_term,clicked_product_id,n_clicks,date", "mug,7,3,2026-01-01", {"clicks": "n_clicks"}),
    ("query,product_id,total_clicks,purchases_30d,click_rate", "mug,7,3,0,0.03",
     {"clicks": "total_clicks", "purchases": "purchases_30d"}),
    ("query,product_id,event,impressions", "mug,7,click,8|9", {"event": "event", "shown": "impressions"}),
    ("query,product_id,event,clicks", "mug,7,click,9", {"event": "event"}),
    ("query,product_id,quantity,shown_ids", "mug,7,3,9", {"count": "quantity", "shown": "shown_ids"}),
    ("Search term,Lineitem sku,Lineitem quantity", "mug,L-S,2", {"count": "Lineitem quantity"}),
    ("query,product_id,total,n", "mug,7,60,1", {}),
    ("query,product_id,purchases", "mug,7,59.90", {}),
    ("query,product_id,clicked,purchased", "mug,7,True,false", {"clicks": "clicked", "purchases": "purchased"}),
    ("query,product_id,impressions,purchases", "mug,7,9,", {"exposures": "impressions", "purchases": "purchases"}),
    ("query,product_id,clicks", "mug,7,", {}),
])  # fmt: skip
def test_every_count_is_of_its_event(header, line, expected):
    mapping, _ = mapped(header, *[line] * 6)
    assert mapping.pop("text") and mapping.pop("product_id")
    mapping.pop("timestamp", None)
    assert mapping == {field: (column,) for field, column in expected.items()}


def test_the_lines_tell_which_event_a_column_counts():
    _, lines = mapped("query,product_id,impressions,clicks", "mug,7,120,9", "mug,8,100,7")
    assert "clicks <- clicks: its name; 100% of 2 values differ" in lines
    assert "exposures <- impressions: its name; 100% of 2 values differ" in lines
    assert not any(line.startswith("not used") for line in lines)


@pytest.mark.parametrize("header, value", [
    ("relevance", "2"), ("label", "0"), ("rating", "4.5"), ("grade", "3"), ("score", "0.7"), ("esci_label", "E"),
    ("relevance_score", "1"), ("Relevance Label", "Partial"),
])  # fmt: skip
def test_a_judgement_is_no_event_and_its_scale_is_not_guessed(header, value):
    for extra in (("", ""), (",quantity", ",1")):
        with pytest.raises(ValueError, match=rf"log.csv: .*'{header}' .*log_columns purchases='{header}'.* event="):
            mapped(f"query,product_id,{header}{extra[0]}", *[f"mug,7,{value}{extra[1]}"] * 6)


def test_what_a_judgement_means_can_be_told():
    header, lines = "query,product_id,relevance", ["mug,7,2", "mug,8,0"]
    assert mapped(header, *lines, purchases="relevance")[0]["purchases"] == ("relevance",)
    mapping, told = mapped(header, *lines, event="")
    assert set(mapping) == {"text", "product_id"} and "not used: relevance" in told
    assert mapped("query,product_id,event,score", "mug,7,click,0.5")[0]["event"] == ("event",)
    assert mapped("query,product_id,clicks,score", "mug,7,1,0.5")[0]["clicks"] == ("clicks",)
    assert mapped("query,product_id,label", *["mug,7,purchase", "mug,8,click"])[0]["event"] == ("label",)


@pytest.mark.parametrize("given", [{"event": "kind", "clicks": "n"}, {"count": "m", "purchases": "n"}])
def test_events_are_named_or_counted_apart_but_not_both(given):
    with pytest.raises(ValueError, match="log.csv: .* each count one event.* leave out"):
        mapped("query,product_id,kind,n,m", "mug,7,click,3,4", **given)


def test_counts_are_whole_numbers_and_flags():
    assert [read_count(cell) for cell in (3, "3.0", " 0 ", True, "False")] == [3, 3, 0, 1, 0]
    for cell in ("-1", "2.5", "many", "", None, float("nan"), "inf", "1e99", 10**400, [1], {}):
        assert read_count(cell) is None
