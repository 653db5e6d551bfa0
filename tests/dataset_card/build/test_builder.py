from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moon2_dataset import SchemaError, load_product_queries, load_products
from moon2_dataset.build import builder
from moon2_dataset.build import report as build_report
from moon2_dataset.build.builder import BuildArguments, build_dataset, main
from moon2_dataset.build.duplicates import find_duplicates
from moon2_dataset.build.named import open_named
from moon2_dataset.build.report import discrepancies

# Builds in children, each killed at the first file it writes anew: one just before it is renamed, the next just after.
# The second folder is built in one go. Prints how many children were killed.
KILLED = """
import os, signal, sys
from pathlib import Path
import imagehash, scipy.fftpack, scipy.sparse.csgraph, tqdm.auto
from moon2_dataset.build import builder, catalogue, log, report

catalogue.WORK_ROWS, log.WORK_LINES, log.PARTITIONS = 50, 130, 4
report.KEPT_LINES, report.PER_LINE = 1, 2
replace = Path.replace

def build(arguments, die):
    def dying(self, target):
        new = not target.exists() or target.read_bytes() != self.read_bytes()
        if new and die == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(self, target)
        if new and die == "after":
            os.kill(os.getpid(), signal.SIGKILL)
    Path.replace = dying
    builder.main(arguments)

def survives(arguments, die):
    child = os.fork()
    if not child:
        try:
            build(arguments, die)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and status:
        sys.exit("a build failed")
    return not os.WIFSIGNALED(status)

children = 0
while not survives(sys.argv[3:] + ["--output_dir", sys.argv[1]], ["before", "after"][children % 2]):
    children += 1
survives(sys.argv[3:] + ["--output_dir", sys.argv[2]], "")
print(children)
"""


@pytest.fixture(scope="module", autouse=True)
def no_sheet():
    """Drawing takes longer than all else; the tests of the sheet put it back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "draw_sheet", lambda *given: False)
        yield


def write_shop(folder: Path, make_image, number: int = 120) -> tuple[Path, Path]:
    """A catalogue with duplicates of every kind, and a log with every kind of line."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    products = []
    for row in range(number):
        title = f"{rng.choice(['Red', 'Blue', 'Green'])} {rng.choice(['mug', 'shoe', 'lamp', 'bag'])} {row % 50}"
        products.append({"sku": f"s{row}", "name": title, "category": f"Shop > Part {row % 4}", "image": ""})
        if row % 2:
            like = row - 10 if row > 60 and row % 6 == 1 else row
            products[-1]["name"] = products[like]["name"]
            products[-1]["category"] = products[like]["category"]
            make_image(like).save(folder / "images" / f"{row}.jpg")
            products[-1]["image"] = f"images/{row}.jpg"
    products[30]["sku"], products[31]["image"], products[32]["name"] = "s3", "images/none.jpg", ""
    with open(folder / "shop.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(products[0]))
        writer.writeheader()
        writer.writerows(products)
    with open(folder / "clicks.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "product_id", "event", "count", "shown"])
        for _ in range(3 * number):
            shown = "|".join(f"s{row}" for row in rng.integers(0, number + 5, 12))
            event = rng.choice(["purchase", "click", "nonsense"], p=[0.5, 0.4, 0.1])
            query = f"{rng.choice(['red', 'Blue'])} {rng.choice(['mug', 'shoe', 'lamp', ' '])} {rng.integers(4)}"
            writer.writerow([query, f"s{rng.integers(number + 5)}", event, rng.integers(-1, 4), shown])
    return folder / "shop.csv", folder / "clicks.csv"


@pytest.fixture(scope="module")
def shop(tmp_path_factory, make_image):
    return write_shop(tmp_path_factory.mktemp("shop"), make_image)


@pytest.fixture(scope="module")
def built(shop, tmp_path_factory):
    """(folder, report) of the shop, built in one go. Do not write there."""
    out = tmp_path_factory.mktemp("built") / "data"
    return out, build_dataset(arguments(shop, out), progress=False)


def arguments(shop, out, **changes) -> BuildArguments:
    catalogue, log = shop
    given = {"max_per_category": 15, "min_exposures": 2, "shard_rows": 30, "workers": 2}
    return BuildArguments(str(catalogue), str(out), log=str(log), **given | changes)


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@pytest.mark.parametrize("given", [
    ("impressions,clicks,purchases", ("40,9,2", "30,0,0", "20,5,0"), {"purchase": 2, "click": 14, "exposure": 90}, {}),
    ("relevance", ("2", "0", ""), {"purchase": 2, "click": 0, "exposure": 2},
     {"log_columns": ["purchases=relevance"], "min_exposures": 1, "max_negatives": 1}),
])  # fmt: skip
def test_a_log_that_sums_events_up_makes_positives_of_purchases_alone(tmp_path, given):
    names, counts, events, changes = given
    (tmp_path / "shop.csv").write_text("id,title\n" + "".join(f"{row},Mug {row} of clay\n" for row in range(9)))
    lines = [f"clay mug,{row},{count}\n" for row, count in enumerate(counts)]
    (tmp_path / "log.csv").write_text(f"query,product_id,{names}\n" + "".join(lines))
    paths = tmp_path / "shop.csv", tmp_path / "log.csv"
    report = build_dataset(arguments(paths, tmp_path / "out", splits=["train=1"], **changes), progress=False)
    assert report["log"]["events"] == events and report["log"]["used"] == 3
    assert any("a line counts as its purchases" in line for line in report["log"]["mapping"])
    (query,) = load_product_queries(tmp_path / "out/products-*", tmp_path / "out/queries-*").queries
    assert (query["product_id"], query["negative_ids"], query["grade"]) == ("0", ["1"], 2)


SHOPIFY = """Handle,Title,Body (HTML),Option1 Name,Option1 Value,Variant SKU
linen-shirt,Linen shirt,A shirt.,Size,S,L-S
linen-shirt,,,,M,L-M
silk-scarf,Silk scarf,A scarf.,Title,Default Title,SAME
wool-hat,Wool hat,A hat.,Size,S,W-S
wool-hat,,,,M,SAME
"""
WOOCOMMERCE = """ID,Type,SKU,Name,Published,Categories,Parent
45,variable,shirt,Linen shirt,1,Clothing,
46,simple,SAME,Silk scarf,1,Clothing,
47,variation,L-S,Linen shirt - S,1,,id:45
48,variation,L-M,Linen shirt - M,1,,shirt
49,variable,hat,Wool hat,1,Clothing,
50,variation,SAME,Wool hat - M,1,,id:49
51,variation,W-S,Wool hat - S,1,,id:49
"""


@pytest.mark.parametrize(("export", "shirt", "hat"), [(SHOPIFY, "linen-shirt", "wool-hat"), (WOOCOMMERCE, "45", "49")])
def test_orders_name_variants_and_the_catalogue_their_products(tmp_path, export, shirt, hat):
    (tmp_path / "shop.csv").write_text(export)
    (tmp_path / "orders.csv").write_text(
        "Search term,Lineitem sku,Lineitem quantity\nlinen,L-S,1\nLinen,L-M,3\nhat,W-S,1\nhat,SAME,1\nhat,gone,1\n"
    )
    paths = tmp_path / "shop.csv", tmp_path / "orders.csv"
    report = build_dataset(arguments(paths, tmp_path / "out", splits=["train=1"]), progress=False)
    queries = load_product_queries(tmp_path / "out/products-*", tmp_path / "out/queries-*").queries
    assert {(query["text"], query["product_id"]) for query in queries} == {("linen", shirt), ("hat", hat)}
    assert {reason: entry["examples"] for reason, entry in report["log"]["dropped"].items()} == {
        "ambiguous_product": ["orders.csv line 5: SAME"],
        "unknown_product": ["orders.csv line 6: gone"],
    }


def test_what_is_built_is_read_by_the_package(built):
    out, report = built
    data = load_product_queries(out / "products-*", out / "queries-*")
    assert len(data.products) == report["products"] < 120
    assert len(data) == report["log"]["positives"]["written"]
    for split, counts in report["splits"].items():
        part = load_product_queries(f"{out}/products-{split}-*", f"{out}/queries-{split}-*")
        assert (len(part.products), len(part)) == (counts["products"], counts["query_rows"])
        assert len(part.positives) == counts["queries"]
    assert sorted(path.name for path in (out / ".build").iterdir()) == ["manifest.json"]
    assert max(data.queries["grade"]) > 1 and any(data.queries["negative_ids"])


def test_the_report_has_every_kind_of_loss_and_adds_up(built):
    report = built[1]
    assert discrepancies(report) == []
    assert report["catalogue"]["rows"] == 120
    assert report["catalogue"]["dropped"]["no_title_no_image"]["examples"] == ["shop.csv line 34"]
    assert report["catalogue"]["notes"]["image_missing"]["rows"] == 1
    assert report["duplicates"]["same_product_id"] == {"rows": 1, "examples": ["s3"]}
    assert report["duplicates"]["same_title_and_image"]["rows"] >= 5
    assert report["over_category_limit"] > 10
    assert set(report["log"]["dropped"]) == {"unknown_event", "unknown_product", "broken_count"}
    assert min(report["log"]["negatives"].values()) > 0


def test_no_group_straddles_a_split_and_the_log_follows_dropped_duplicates(shop, tmp_path, monkeypatch):
    found = {}
    monkeypatch.setattr(builder, "find_duplicates", lambda *given: found.setdefault("it", find_duplicates(*given)))
    build_dataset(
        arguments(shop, tmp_path / "data", max_per_category=None, positive_events=["purchase", "click"]), False
    )
    duplicates = found["it"]
    with open(shop[0], newline="") as file:
        ids = [row["sku"] for row in csv.DictReader(file) if row["name"]]
    split_of = {}
    for split in ("train", "validation", "test"):
        part = load_product_queries(f"{tmp_path}/data/products-{split}-*", f"{tmp_path}/data/queries-{split}-*")
        split_of |= dict.fromkeys(part.products["product_id"], split)
        assert set(part.queries["product_id"]) <= set(part.products["product_id"])
        assert {product for row in part.queries["negative_ids"] for product in row} <= set(part.products["product_id"])
    assert set(split_of) == {ids[row] for row in np.flatnonzero(duplicates.kept)}
    for group in np.unique(duplicates.group):
        assert len({split_of[ids[row]] for row in np.flatnonzero((duplicates.group == group) & duplicates.kept)}) == 1
    asked = set(load_product_queries(tmp_path / "data/products-*", tmp_path / "data/queries-*").queries["product_id"])
    replaced = {ids[duplicates.kept_row[row]] for row in np.flatnonzero(~duplicates.kept)}
    with open(shop[1], newline="") as file:
        lines = [
            line for line in csv.DictReader(file) if line["event"] in ("purchase", "click") and line["count"] in "123"
        ]
    via_duplicate = {line["product_id"] for line in lines} - set(split_of) & set(ids)
    assert (
        via_duplicate
        and {ids[duplicates.kept_row[ids.index(product)]] for product in via_duplicate if product in ids}
        <= asked | replaced
    )


def test_a_build_killed_at_every_file_ends_with_the_same_bytes(shop, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    given = ["--catalogue", str(shop[0]), "--log", str(shop[1]), "--max_per_category", "15", "--min_exposures", "2"]
    given += ["--splits", "train=0.8", "test=0.2", "--shard_rows", "40", "--workers", "2"]
    run = [sys.executable, "-c", KILLED, str(killed), str(whole), *given]
    environment = os.environ | {"TQDM_DISABLE": "1"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    files = len(content(killed))
    assert content(killed) == content(whole)
    assert files >= 9
    assert int(done.stdout.splitlines()[-1]) == 2 * (files + 3 + 3 + 2)  # with the work files, and the manifest twice


def test_the_same_command_again_finds_it_done(built, shop, monkeypatch):
    out, report = built
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()}
    monkeypatch.setattr(builder, "clean_catalogue", None)
    assert build_dataset(arguments(shop, out, workers=1), progress=False) == report
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.is_file()} == before


def test_other_arguments_and_changed_files_are_refused_with_the_way_out(shop, tmp_path, make_image):
    catalogue, log = write_shop(tmp_path / "shop", make_image, 40)
    out = tmp_path / "data"
    build_dataset(arguments((catalogue, log), out), progress=False)
    with pytest.raises(ValueError, match=r"has seed=0, not 1; give a new output_dir, or --overwrite true"):
        build_dataset(arguments((catalogue, log), out, seed=1), progress=False)
    with pytest.raises(ValueError, match="is of another log, or the log has changed since"):
        build_dataset(arguments((catalogue, shop[1]), out), progress=False)
    with open(catalogue, "a") as file:
        file.write("new,New mug,Shop,\n")
    with pytest.raises(ValueError, match="is of another catalogue, or the catalogue has changed since"):
        build_dataset(arguments((catalogue, log), out), progress=False)
    (out / "notes.txt").write_text("mine")
    report = build_dataset(arguments((catalogue, log), out, seed=1, overwrite=True), progress=False)
    assert report["catalogue"]["rows"] == 41 and (out / "notes.txt").exists()
    (out / "products-train-00000.parquet").unlink()
    with pytest.raises(ValueError, match="lacks products-train-00000.parquet of a finished build"):
        build_dataset(arguments((catalogue, log), out, seed=1), progress=False)


def test_it_does_not_write_beside_strange_tables_or_into_its_source(shop, tmp_path, make_image):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "products.parquet").write_bytes(b"")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds products.parquet, which would be read with what is built"):
            build_dataset(arguments(shop, tmp_path / "data", overwrite=overwrite), progress=False)
    with pytest.raises(ValueError, match="lies in output_dir"):
        build_dataset(arguments(shop, shop[0].parent, overwrite=True), progress=False)
    assert shop[0].exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": ["train=0.5"]}, "add up to 0.5"),
        ({"min_purchases": 0}, "min_purchases=0; give 1 or more"),
        ({"image_hash_distance": 9}, "image_hash_distance=9; give 0 to 6 bits"),
        ({"positive_events": ["view"]}, "give purchase, click or both"),
        ({"splits": ["all=1"]}, "max_per_category limits the split train"),
        ({"columns": ["title"]}, "columns: 'title'; give every field once, as FIELD=COLUMN"),
        ({"columns": ["title=Nam"]}, "has no column 'Nam' for title"),
        ({"log": None, "log_columns": ["text=query"]}, "log_columns without a log"),
        ({"image_root": "/nowhere/at/all"}, "image_root=/nowhere/at/all is no folder"),
    ],
)
def test_arguments_without_meaning_are_refused(shop, tmp_path, changes, message):
    with pytest.raises(ValueError) as error:
        given = {"catalogue": str(shop[0]), "log": str(shop[1]), "max_per_category": 5} | changes
        build_dataset(BuildArguments(output_dir=str(tmp_path / "data"), **given), progress=False)
    assert message in str(error.value)
    assert not (tmp_path / "data").exists()


def test_the_command_prints_the_guess_and_what_came_of_it(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(builder, "draw_sheet", build_report.draw_sheet)
    main(["--catalogue", str(shop[0]), "--output_dir", str(tmp_path / "data"), "--columns", "title=name",
          "--splits", "train=0.6", "rest=0.4"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "title <- name: given" in printed and "product_id <- sku" in printed
    assert "note: no log was given, so there are no queries" in printed
    assert len(load_products(tmp_path / "data/products-*")) > 90
    assert not list((tmp_path / "data").glob("queries*"))
    page = (tmp_path / "data" / "build_report.md").read_text(encoding="utf-8")
    assert "| rest | 40.0 % |" in page and "same_title_and_image" in page
    assert (tmp_path / "data" / "contact_sheet.png").stat().st_size > 10_000


def test_a_log_without_events_says_what_its_lines_count_as(shop, tmp_path, capsys):
    (tmp_path / "log.csv").write_text("query,sku\nmug,s1\nmug,s1\n")
    given = ["--catalogue", str(shop[0]), "--log", str(tmp_path / "log.csv"), "--positive_events", "click"]
    main([*given, "--log_columns", "product_id=sku", "--output_dir", str(tmp_path / "data")])
    assert "without a column for event, every line counts as a click" in capsys.readouterr().out
    assert load_product_queries(tmp_path / "data/products-*", tmp_path / "data/queries-*").queries["grade"] == [2.0]


def test_a_data_set_known_by_name_brings_its_log(tmp_path, make_image, monkeypatch):
    rows = [{"query": f"mug {row}", "item_id": f"i{row % 5}", "item_title": f"Mug {row % 5}"} for row in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = []

    def from_disk(name, split, columns):
        opened.append((name, split))
        return open_named(name, split, columns, path=str(tmp_path / "pairs.jsonl"))

    monkeypatch.setattr(builder, "open_named", from_disk)
    given = BuildArguments("ZHNie/MBE2.0:test", str(tmp_path / "data"), splits=["test=1"])
    told = build_dataset(given, progress=False)
    assert opened == [("ZHNie/MBE2.0", "test")]
    assert (told["products"], told["duplicates"]["same_product_id"]["rows"]) == (5, 15)
    assert told["splits"]["test"]["queries"] == 20
    with pytest.raises(ValueError, match="ZHNie/MBE2.0 brings its own log"):
        build_dataset(BuildArguments("ZHNie/MBE2.0", str(tmp_path / "more"), log="log.csv"), progress=False)


def test_a_catalogue_of_junk_ends_with_its_reasons(tmp_path):
    (tmp_path / "shop.csv").write_text("id,title\n,Mug\n1,\n2\n")
    with pytest.raises(ValueError, match="no product is left of 3 rows; build_report.md says why"):
        main(["--catalogue", str(tmp_path / "shop.csv"), "--output_dir", str(tmp_path / "data")])
    report = json.loads((tmp_path / "data" / "build_report.json").read_text())
    assert {reason: entry["rows"] for reason, entry in report["catalogue"]["dropped"].items()} == {
        "no_title_no_image": 2,
        "no_product_id": 1,
    }


TEXTS = st.sampled_from(
    [
        "Red mug",
        "red  MUG!",
        "Blue shoe",
        "",
        " ",
        "!",
        "nan",
        "<b>Mug</b>",
        "x" * 2000,
        "\ud800",
        "\x00",
        "🙂",
        "１２",
        "a|b",
        "a > b",
    ]
) | st.text(max_size=8)
IDS = st.sampled_from(["1", "2", "3", "4", "5", " 1 ", 1, 2.0, None, "", float("nan"), [1], "6", "7", "8"])
PRODUCTS = st.lists(
    st.fixed_dictionaries(
        {"id": IDS, "title": st.none() | TEXTS | st.integers()},
        optional={
            "category": TEXTS | st.lists(TEXTS, max_size=3) | st.none(),
            "color": TEXTS | st.integers() | st.lists(TEXTS, max_size=2),
            "description": TEXTS,
            "image": st.sampled_from(
                ["0.jpg", "1.jpg", "2.jpg", "broken.jpg", "gone.jpg", "", None, 7, ["0.jpg", "1.jpg"]]
            ),
        },
    ),
    min_size=1,
    max_size=25,
)
LINES = st.lists(
    st.fixed_dictionaries(
        {"query": TEXTS | st.none(), "product_id": IDS},
        optional={
            "event": st.sampled_from(["purchase", "purchase", "buy", "click", "exposure", "zzz", None, 3]),
            "count": st.sampled_from([1, 2, "3", 0, -1, "x", None, 1e30, float("nan")]),
            "shown": st.lists(IDS, max_size=6) | st.sampled_from(["1|2|3", "1,4", "", None, 5]),
            "query_image": st.sampled_from(["0.jpg", "broken.jpg", None]),
        },
    ),
    min_size=1,
    max_size=25,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, make_image):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        make_image(number // 2).save(folder / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:300])
    return folder


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    products=PRODUCTS,
    lines=LINES,
    limit=st.sampled_from([None, 1, 2]),
    splits=st.sampled_from([["train=1"], ["train=0.5", "test=0.5"]]),
)
def test_junk_is_counted_and_what_is_left_passes_the_schema(pictures, products, lines, limit, splits):
    with tempfile.TemporaryDirectory(dir=pictures) as folder:
        out = Path(folder) / "data"
        for name, rows in (("shop", products), ("log", lines)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (pictures / f"{name}.jsonl").write_text(text)
            os.utime(pictures / f"{name}.jsonl")
        columns = {"columns": ["product_id=id", "title=title"], "log_columns": ["text=query", "product_id=product_id"]}
        given = BuildArguments(
            str(pictures / "shop.jsonl"), str(out), log=str(pictures / "log.jsonl"), splits=splits,
            max_per_category=limit, min_exposures=1, workers=1, **columns,
        )  # fmt: skip
        told = build_dataset(given, progress=False)
        assert discrepancies(told) == []
        assert (told["catalogue"]["rows"], told["log"]["lines"]) == (len(products), len(lines))
        if told["log"]["positives"]["written"]:
            data = load_product_queries(out / "products-*", out / "queries-*")
            assert len(data.products) == told["products"]
            by_title = {}
            for split in splits:
                name = split.partition("=")[0]
                if told["splits"][name]["products"]:
                    for title in load_products(f"{out}/products-{name}-*")["title"]:
                        by_title.setdefault(title.casefold().strip(), set()).add(name)
            assert all(len(found) == 1 for title, found in by_title.items() if title)
        elif told["products"]:
            load_products(out / "products-*")
        else:
            with pytest.raises((FileNotFoundError, SchemaError)):
                load_products(out / "products-*")


ADDRESSES = ("http://169.254.169.254/latest/meta-data", "https://127.0.0.1/a.jpg", "HTTP://shop.example/a.jpg",
             "ftp://10.0.0.1/a.jpg", "//10.0.0.1/a.jpg", "\\\\10.0.0.1\\a.jpg", "file://10.0.0.1/a.jpg")  # fmt: skip


@pytest.fixture
def connections(monkeypatch):
    """What was asked for over the network, which nothing is."""
    asked = []

    def refuse(*place, **options):
        asked.append(place)
        raise OSError("no network in a test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def test_no_connection_is_opened_for_a_row(tmp_path, connections):
    rows = "".join(f"{n},Mug {n},{address}\n" for n, address in enumerate(ADDRESSES))
    (tmp_path / "shop.csv").write_text("id,title,image_url\n" + rows)
    arguments = BuildArguments(str(tmp_path / "shop.csv"), str(tmp_path / "out"), columns=["images=image_url"])
    report = build_dataset(arguments, progress=False)
    assert report["products"] == len(ADDRESSES)
    assert report["catalogue"]["notes"]["image_url_not_fetched"]["rows"] == 4
    assert connections == []
