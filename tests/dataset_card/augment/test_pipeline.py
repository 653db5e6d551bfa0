from __future__ import annotations

import copy
import io
import json
import shutil
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessorPil

from moon2_dataset import load_product_queries, load_products
from moon2_dataset.augment import pipeline, stages
from moon2_dataset.augment.arguments import AugmentArguments
from moon2_dataset.augment.editing import PROMPTS, DiffusersEditor
from moon2_dataset.augment.pipeline import augment, main
from moon2_dataset.augment.run_files import ADDED
from moon2_dataset.augment.variants import KINDS
from moon2_dataset.demo_catalogue import render_demo_catalogue

ROWS = 24


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A drawn catalogue as a file: one product without title, one without picture, two with a broken first picture."""
    products, _ = render_demo_catalogue(ROWS, seed=3)
    rows = products.to_list()
    rows[4]["title"] = ""
    rows[7]["images"] = []
    rows[9]["images"] = [{"bytes": b"no picture", "path": None}]
    rows[11]["images"][0] = {"bytes": rows[11]["images"][0]["bytes"][:300], "path": None}
    folder = tmp_path_factory.mktemp("shop")
    table = Dataset.from_list(rows, features=products.features)
    table.to_parquet(folder / "products-train.parquet")
    return folder / "products-train.parquet"


def arguments(shop, out, **changes) -> AugmentArguments:
    return AugmentArguments(**{"input": str(shop), "output": str(out), "workers": 1, "batch_rows": 5} | changes)


@pytest.fixture(scope="module")
def augmented(shop, tmp_path_factory):
    """(report, file) of a whole run."""
    out = tmp_path_factory.mktemp("out") / "products-train.parquet"
    return augment(arguments(shop, out), progress=False), out


def test_every_row_comes_out_as_it_was(shop, augmented):
    before, after = pq.read_table(shop), pq.read_table(augmented[1])
    assert after.column_names == [*before.column_names, *ADDED]
    assert after.select(before.column_names).equals(before)
    assert len(load_products(augmented[1])) == ROWS  # and what was added fits the schema


def test_what_was_added(augmented):
    report, out = augmented
    rows = pq.read_table(out).to_pylist()
    assert report["products"] == ROWS
    for number, row in enumerate(rows):
        if number in (7, 9):
            assert row["expanded_images"] == [] and row["core_region"] == []
            continue
        assert len(row["expanded_images"]) == 3
        for image in row["expanded_images"]:
            assert Image.open(io.BytesIO(image["bytes"])).format == "JPEG"
            assert image["path"].rpartition("-")[0] in KINDS
    assert rows[11]["core_region"] == []  # its first picture is broken, and boxes are of the first
    assert sum(bool(row["core_region"]) for row in rows) == report["core_regions"] >= 18
    assert sum(found["rows"] for found in report["made"].values()) == 3 * (ROWS - 2)
    assert report["subject"]["no_image"]["rows"] == 2
    assert report["unreadable_images"]["rows"] == 2
    assert "product demo-00009, image 0: no picture" in report["unreadable_images"]["examples"][0]
    titles = report["title"] | report["rejected"]
    assert sum(found["rows"] for found in titles.values()) == ROWS
    enriched = [row for row in rows if row["enriched_title"]]
    assert all(row["enriched_title"] != row["title"] for row in enriched)
    assert len(enriched) == report["title"]["enriched"]["rows"] > 4


def test_what_people_look_at(augmented):
    _, out = augmented
    page = out.with_name(f"{out.name}.report.md").read_text()
    assert f"{ROWS} products" in page and "Variants made" in page and "demo-00009, image 0" in page
    with Image.open(out.with_name(f"{out.name}.contact.png")) as sheet:
        assert sheet.width > 400 and np.asarray(sheet.convert("L")).std() > 10
    assert not out.with_name(f"{out.name}.parts").exists()


def test_the_same_bytes_whatever_the_number_of_processes(shop, augmented, tmp_path):
    augment(arguments(shop, tmp_path / "out.parquet", workers=2), progress=False)
    assert (tmp_path / "out.parquet").read_bytes() == augmented[1].read_bytes()


KILLED = """
import sys
from moon2_dataset.augment import pipeline, run_files
number, kill = int(sys.argv[3]), run_files.ShardWriter.close
seen = 0
def close(self, notes=None):
    global seen
    seen += 1
    if seen == number:
        print("now", flush=True)
        import time; time.sleep(60)
    kill(self, notes)
run_files.ShardWriter.close = close
arguments = pipeline.AugmentArguments(input=sys.argv[1], output=sys.argv[2], workers=1, batch_rows=5)
pipeline.augment(arguments, progress=False)
"""


@pytest.mark.parametrize("number", [2, 6])  # while a part is written, and while the result is
def test_a_killed_run_goes_on(shop, augmented, tmp_path, number):
    out = tmp_path / "out.parquet"
    command = [sys.executable, "-c", KILLED, str(shop), str(out), str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    parts = sorted(out.with_name("out.parquet.parts").glob("part-*.parquet"))
    assert len(parts) == min(number - 1, 5)
    report = augment(arguments(shop, out), progress=False)
    assert out.read_bytes() == augmented[1].read_bytes()
    assert {k: v for k, v in report.items() if k != "seconds"} == {
        k: v for k, v in augmented[0].items() if k != "seconds"
    }


def test_done_work_is_not_done_again_and_other_work_is_refused(shop, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    first = augment(arguments(shop, out, limit=3, variants=1), progress=False)
    monkeypatch.setattr(stages, "expand_product", None)  # nothing may be expanded
    assert augment(arguments(shop, out, limit=3, variants=1), progress=False) == first
    with pytest.raises(ValueError, match=r"was begun with variants=1, now 2; give the same again, another output, or"):
        augment(arguments(shop, out, limit=3, variants=2), progress=False)
    monkeypatch.undo()
    again = augment(arguments(shop, out, limit=3, variants=2, overwrite=True), progress=False)
    assert sum(found["rows"] for found in again["made"].values()) == 6
    out.with_name("out.parquet.report.json").unlink()
    with pytest.raises(ValueError, match="is there and no report says what it was made from; give --overwrite true"):
        augment(arguments(shop, out, limit=3), progress=False)


def test_columns_that_are_there_are_replaced(augmented, tmp_path):
    report = augment(arguments(augmented[1], tmp_path / "again.parquet", limit=4, variants=1), progress=False)
    table = pq.read_table(tmp_path / "again.parquet")
    assert report["replaced_columns"] == sorted(ADDED)
    assert table.column_names == pq.read_table(augmented[1]).column_names
    assert all(len(images) == 1 for images in table["expanded_images"].to_pylist())


def test_models_take_part(shop, tmp_path, qwen, tiny):
    for part in tiny:
        part.save_pretrained(tmp_path / "scorer")
    options = {"enricher": "vlm", "vlm": str(qwen), "core_region": "vlm", "scorer": str(tmp_path / "scorer")}
    kept = augment(
        arguments(
            shop, tmp_path / "kept.parquet", limit=10, score_threshold=-1.0, score_margin=2.0, device="cpu", **options
        ),
        progress=False,
    )
    assert sum(found["rows"] for found in kept["made"].values()) == 24 and not any(
        found["rows"] for found in kept["dropped"].values()
    )
    assert sum(found["rows"] for found in (kept["title"] | kept["rejected"]).values()) == 10
    assert kept["title"]["the answer was cut"]["rows"] == 10  # random weights end no answer
    assert -1 < kept["mean_score"]["originals"] < 1 and -1 < kept["mean_score"]["variants"] < 1
    none = augment(
        arguments(shop, tmp_path / "none.parquet", limit=10, score_threshold=1.1, device="cpu", **options),
        progress=False,
    )
    untitled = 3  # row 4 has no title to hold its variants against
    assert none["dropped"]["under the threshold"]["rows"] == 24 - untitled
    assert [len(images) for images in pq.read_table(tmp_path / "none.parquet")["expanded_images"].to_pylist()] == [
        3 if number == 4 else 0 for number in range(10)
    ]


def test_a_scorer_whose_cosines_are_small_keeps_what_is_as_good_as_its_original(shop, tmp_path, tiny_dual_encoder):
    model, processor = tiny_dual_encoder("siglip")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "scorer")
    report = augment(
        arguments(shop, tmp_path / "out.parquet", limit=4, scorer=str(tmp_path / "scorer"), kinds=["light"],
                  score_margin=0.5, device="cpu"), progress=False,
    )  # fmt: skip
    assert abs(report["mean_score"]["originals"]) < 0.2  # as for real SigLIP models
    assert report["dropped"] == {} and report["made_from"]["score_threshold"] is None


def test_single_failures_of_models_are_counted_with_their_reason(shop, tmp_path, qwen, tiny):
    rows = pq.read_table(shop).slice(0, 4).to_pylist()
    picture = io.BytesIO()
    Image.new("RGB", (510, 2), "red").save(picture, "PNG")
    rows[2]["images"] = [{"bytes": picture.getvalue(), "path": None}]  # a shape that no model takes
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(shop)), tmp_path / "products.parquet")
    for part in tiny:
        part.save_pretrained(tmp_path / "scorer")
    models = {"enricher": "vlm", "vlm": str(qwen), "core_region": "vlm", "scorer": str(tmp_path / "scorer")}
    report = augment(
        arguments(tmp_path / "products.parquet", tmp_path / "out.parquet", score_threshold=-1.0, score_margin=2.0,
                  kinds=["light"], device="cpu", **models), progress=False
    )  # fmt: skip
    assert report["title"]["the model failed"]["rows"] == report["box"]["the model failed"]["rows"] == 1
    assert sum(found["rows"] for found in (report["title"] | report["rejected"]).values()) == 4
    assert sum(found["rows"] for found in report["box"].values()) == 4
    failed = report["failed"]
    assert failed["title: ValueError"]["rows"] == failed["box: ValueError"]["rows"] == 1
    assert failed["score: ValueError"]["rows"] == 1 + 3  # its picture and the variants, which nothing speaks against
    assert failed["title: ValueError"]["examples"][0].startswith("product demo-00002: ValueError: ")
    made = pq.read_table(tmp_path / "out.parquet")["expanded_images"]
    assert [len(images) for images in made.to_pylist()] == [3] * 4
    assert "What models failed at" in (tmp_path / "out.parquet.report.md").read_text()


@pytest.fixture
def broken(tmp_path, qwen, tiny, pipeline_parts):
    """What makes, for every kind of model, a checkpoint that loads and fails at everything; gives its folder."""

    def save(kind: str):
        folder = tmp_path / "broken"
        if kind == "vlm":
            shutil.copytree(qwen, folder)
            settings = folder / "preprocessor_config.json"
            sizes = json.loads(settings.read_text())
            settings.write_text(json.dumps(sizes | {"patch_size": sizes["patch_size"] // 2}))
        elif kind == "scorer":
            model = copy.deepcopy(tiny[0])
            for weight in model.parameters():
                weight.data.fill_(float("nan"))
            model.save_pretrained(folder)
            tiny[1].save_pretrained(folder)
        elif kind == "editor":  # it takes no picture beside the noise
            parts = pipeline_parts(tmp_path, in_channels=4)
            StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
        else:  # it takes pictures of four channels
            config = SegformerConfig(
                num_labels=2, depths=[1], hidden_sizes=[8], num_encoder_blocks=1, sr_ratios=[2], patch_sizes=[7],
                num_attention_heads=[1], strides=[4], mlp_ratios=[2], decoder_hidden_size=16, num_channels=4,
            )  # fmt: skip
            SegformerForSemanticSegmentation(config).save_pretrained(folder)
            SegformerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vlm", {"enricher": "vlm", "vlm": "{}"}),
        ("vlm", {"core_region": "vlm", "vlm": "{}"}),
        ("scorer", {"scorer": "{}"}),
        ("editor", {"editor": "diffusers:{}"}),
        ("segmenter", {"segmenter": "{}"}),
    ],
    ids=["title", "box", "score", "edit", "segmentation"],
)
def test_a_model_that_only_fails_stops_the_run(shop, tmp_path, broken, kind, options):
    folder = broken(kind)
    options = {name: value.format(folder) for name, value in options.items()}
    with pytest.raises(ValueError, match=rf"{kind} {folder}: failed at \d+ items and succeeded at none; the first"):
        augment(arguments(shop, tmp_path / "out.parquet", device="cpu", **options), progress=False)
    assert not (tmp_path / "out.parquet").exists()


def test_edits_come_behind_the_variants_of_their_product(shop, tmp_path, pipeline_parts, monkeypatch):
    parts = pipeline_parts(tmp_path, in_channels=8)
    pipeline = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(tmp_path / "editor")
    monkeypatch.setattr(stages, "DiffusersEditor", partial(DiffusersEditor, steps=1))
    options = {"editor": f"diffusers:{tmp_path / 'editor'}", "edits": 2, "variants": 1}
    rows = pq.read_table(shop).take([6, 7, 8])  # the second has no picture
    pq.write_table(rows, tmp_path / "products.parquet")
    report = augment(arguments(tmp_path / "products.parquet", tmp_path / "out.parquet", device="cpu", max_side=32,
                               **options), progress=False)  # fmt: skip
    made = pq.read_table(tmp_path / "out.parquet")["expanded_images"].to_pylist()
    names = [[image["path"].rpartition("-")[0] for image in images] for images in made]
    edits = [f"edited-{kind}" for kind in list(PROMPTS)[:2]]
    assert names[0][1:] == names[2][1:] == edits and names[1] == []
    assert all(report["made"][name]["rows"] == 2 for name in edits) and report["failed"] == {}


SHARDS = (10, 9, 5)


@pytest.fixture(scope="module")
def shards(shop, tmp_path_factory):
    """The catalogue of `shop` in a folder, in three files to learn from, beside others as the builder leaves them."""
    folder = tmp_path_factory.mktemp("built") / "my-shop"
    folder.mkdir()
    table, start = pq.read_table(shop), 0
    for number, rows in enumerate(SHARDS):
        pq.write_table(table.slice(start, rows), folder / f"products-train-{number:05d}.parquet")
        start += rows
    pq.write_table(table.slice(0, 2), folder / "products-test-00000.parquet")
    queries = pa.table({"query_id": ["q"], "text": ["mug"], "product_id": table["product_id"].slice(12, 1)})
    pq.write_table(queries, folder / "queries-train-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def augmented_shards(shards, tmp_path_factory):
    """(report, folder) of a whole run over a folder."""
    out = tmp_path_factory.mktemp("out") / "my-shop-augmented"
    return augment(arguments(shards, out), progress=False), out


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


TRAIN = [f"products-train-{number:05d}.parquet" for number in range(len(SHARDS))]
BESIDE = ["augment_contact_sheet.png", "augment_report.json", "augment_report.md"]


def test_a_folder_is_one_catalogue(shards, augmented, augmented_shards):
    report, out = augmented_shards
    assert names(out) == [*BESIDE, *TRAIN]
    tables = [pq.read_table(out / name) for name in TRAIN]
    assert tuple(map(len, tables)) == SHARDS
    # one lexicon and one chance: what comes out does not depend on how the catalogue is dealt into files
    assert pa.concat_tables(tables).equals(pq.read_table(augmented[1]))
    assert len(load_products(out)) == ROWS
    assert len(load_product_queries(out, shards / "queries-train-*.parquet")) == 1


def test_the_report_of_a_folder_adds_up(augmented, augmented_shards):
    report, out = augmented_shards
    assert report["files"] == dict(zip(TRAIN, SHARDS, strict=True))
    assert report["left_out"] == ["products-test-00000.parquet"]
    whole = augmented[0]
    for name in ("products", "title", "rejected", "subject", "made", "dropped", "core_regions", "unreadable_images"):
        assert report[name] == whole[name], name
    assert json.loads((out / "augment_report.json").read_text()) == report
    page = (out / "augment_report.md").read_text()
    assert "| products-train-00001.parquet | 9 |" in page
    assert "| products-test-00000.parquet | held out to be judged on: left out |" in page
    with Image.open(out / "augment_contact_sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10


@pytest.mark.parametrize("number", [3, 5, 8])  # while the first file is put together, in the second, while the last is
def test_a_killed_run_over_a_folder_goes_on(shards, augmented_shards, tmp_path, number):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(shards), str(out), str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert sorted(finished) == TRAIN[: (number - 1) // 3]  # two parts and their file
    report = augment(arguments(shards, out), progress=False)
    assert names(out) == [*BESIDE, *TRAIN]
    for name in TRAIN:
        assert (out / name).read_bytes() == (augmented_shards[1] / name).read_bytes()
        assert name not in finished or (out / name).stat().st_mtime_ns == finished[name]
    seconds = {"seconds": report["seconds"]}
    assert report == augmented_shards[0] | seconds


def test_a_finished_folder_is_not_done_again(shards, tmp_path, monkeypatch):
    out, options = tmp_path / "out", {"limit": 12, "variants": 1}
    first = augment(arguments(shards, out, **options), progress=False)
    assert first["files"] == {TRAIN[0]: 10, TRAIN[1]: 2}
    monkeypatch.setattr(stages, "expand_product", None)  # nothing may be expanded
    assert augment(arguments(shards, out, **options), progress=False) == first
    with pytest.raises(ValueError, match="was begun with other files, or they have changed since; give the same"):
        augment(arguments(shards / "*-00001.parquet", out, **options), progress=False)
    (out / TRAIN[1]).unlink()
    with pytest.raises(ValueError, match=f"{TRAIN[1]} of a finished run is missing; make it again with --overwrite"):
        augment(arguments(shards, out, **options), progress=False)
    monkeypatch.undo()
    augment(arguments(shards, out, overwrite=True, **options), progress=False)
    assert names(out) == [*BESIDE, *TRAIN[:2]]
    with pytest.raises(ValueError, match=f"out holds {TRAIN[1]}, which would be read with what is made; give another"):
        augment(arguments(shards / TRAIN[0], out, overwrite=True), progress=False)


def test_pictures_are_found_beside_the_file_that_names_them(shop, tmp_path):
    """Two files in two folders, each with a picture of the same relative path."""
    inputs = []
    for number, row in enumerate(pq.read_table(shop).slice(0, 2).to_pylist()):
        folder = tmp_path / f"part-{number}"
        folder.mkdir()
        (folder / "picture.jpg").write_bytes(row["images"][0]["bytes"])
        table = pa.table({"product_id": [row["product_id"]], "title": [row["title"]], "images": [["picture.jpg"]]})
        pq.write_table(table, folder / f"products-train-{number}.parquet")
        inputs.append(str(folder / f"products-train-{number}.parquet"))
    augment(arguments(shop, tmp_path / "out", input=inputs), progress=False)
    made = pa.concat_tables(pq.read_table(tmp_path / "out" / f"products-train-{number}.parquet") for number in (0, 1))
    assert [len(images) for images in made["expanded_images"].to_pylist()] == [3, 3]
    assert made["expanded_images"][0] != made["expanded_images"][1]


def test_wrong_outputs_of_several_files_are_named(shards, tmp_path):
    with pytest.raises(ValueError, match="out.parquet is one file, but 3 are to be augmented; give a folder"):
        augment(arguments(shards, tmp_path / "out.parquet"))
    with pytest.raises(ValueError, match="give a folder other than the input"):
        augment(arguments(shards, shards))
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match="out is a file; give a folder, or a Parquet file"):
        augment(arguments(shards, tmp_path / "out"))
    with pytest.raises(ValueError, match="products-test-00000.parquet: 'test' in its name says"):
        augment(arguments(shards / "products-*.parquet", tmp_path / "other"))
    assert names(tmp_path) == ["out"]


def test_wrong_files_are_named(shop, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.parquet: no Parquet file there"):
        augment(arguments(tmp_path / "nothing.parquet", tmp_path / "out.parquet"))
    with pytest.raises(ValueError, match="give a Parquet file other than the input"):
        augment(arguments(shop, shop))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="broken.parquet: cannot be read as Parquet"):
        augment(arguments(tmp_path / "broken.parquet", tmp_path / "out.parquet"))
    pq.write_table(pa.table({"name": ["mug"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="other.parquet: no column product_id"):
        augment(arguments(tmp_path / "other.parquet", tmp_path / "out.parquet"))
    assert not list(tmp_path.glob("out*"))


def test_the_command_takes_two_names(shop, tmp_path, capsys):
    main([str(shop), str(tmp_path / "out.parquet"), "--limit", "2", "--workers", "1", "--variants", "2"])
    printed = capsys.readouterr().out
    assert printed.startswith("2 products: ") and "4 variants made" in printed
    assert json.loads((tmp_path / "out.parquet.report.json").read_text())["made_from"]["variants"] == 2


@pytest.fixture
def asked_for(monkeypatch):
    """Reads a command line as the command does, without the work; gives the arguments."""

    def read(*words) -> AugmentArguments:
        given = []
        monkeypatch.setattr(pipeline, "augment", lambda arguments: given.append(arguments))
        monkeypatch.setattr(pipeline, "summary", lambda report, page, sheet: "")
        main([str(word) for word in words])
        return given[0]

    return read


def test_names_may_stand_anywhere_in_the_line(shop, shards, tmp_path, asked_for):
    out, recipe = tmp_path / "out.parquet", tmp_path / "recipe.yaml"
    one = AugmentArguments(str(shop), str(out), variants=2, overwrite=True)
    assert asked_for("--variants", 2, "--overwrite", shop, out) == one
    assert asked_for(shop, "--variants", "2", out, "--overwrite") == one
    assert asked_for(shop, "--overwrite", "true", "--variants=2", out) == one
    assert asked_for("--input", shop, "--variants", 2, "--overwrite", "--output", out) == one
    recipe.write_text(f"input: {shop}\noutput: elsewhere\nvariants: 2\noverwrite: true\n")
    assert asked_for("--config", recipe, shop, out) == asked_for("--config", recipe, "--output", out) == one
    files = [shards / name for name in TRAIN]
    several = AugmentArguments(
        [str(file) for file in files], str(tmp_path / "out"), kinds=["light", "detail"], seed=-1
    )
    assert asked_for(*files[:2], "--seed", -1, files[2], tmp_path / "out", "--kinds", "light", "detail") == several


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.parquet"], "a.parquet stands alone; give `moon2 augment INPUT... OUTPUT"),
        ([], "no input and no output; give `moon2 augment INPUT... OUTPUT"),
        (["--output", "b.parquet"], "no input; give `moon2 augment INPUT... OUTPUT"),
        (["--kinds", "light", "a", "b"], "no input and no output; .* names in front of options of several values"),
        (["a", "b", "--output", "c"], "a b beside --input or --output; give `moon2 augment INPUT... OUTPUT"),
        (["a", "b", "--varants", "2"], "not used .*'--varants'"),
    ],
)
def test_a_line_without_its_names_is_told_what_to_write(words, message):
    with pytest.raises(ValueError, match=message):
        main(words)


def test_the_help_shows_the_names(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: moon2 augment INPUT... OUTPUT [options]\n")


def test_the_command_takes_a_folder_and_what_a_shell_makes_of_a_glob(shards, tmp_path, capsys):
    options = ["--workers", "1", "--variants", "1", "--enricher", "none"]
    main([str(shards), str(tmp_path / "folder"), *options])
    printed = capsys.readouterr().out
    assert printed.startswith(f"takes {', '.join(TRAIN)}\nleaves products-test-00000.parquet: held out")
    assert f"look at {tmp_path / 'folder' / 'augment_report.md'} and augment_contact_sheet.png" in printed
    main([*(str(shards / name) for name in TRAIN), str(tmp_path / "listed"), *options])
    for name in TRAIN:
        assert (tmp_path / "listed" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
