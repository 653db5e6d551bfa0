from __future__ import annotations

import csv
import json
import zipfile

import numpy as np
import pytest
import torch
from datasets import Dataset

from moon2_space.catalogue_folder import CatalogueFolder
from moon2_space.catalogue_source import Limits
from moon2_space.index_command import OWNER_LIMITS, IndexArguments, main
from moon2_space.product_table import ProductTable
from moon2_training.encode_catalogue import EncodeArguments, encode_catalogue, load_for_encoding
from moon2_training.mini import build_mini


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MOON2_DATA_DIR", str(tmp_path / "data"))

    def command(*argv):
        main([str(argument) for argument in argv])
        return capsys.readouterr().out

    return command


@pytest.fixture
def catalogue(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_text("id,title,colour\n1,Red mug,red\n2,Blue mug,blue\n,No id,\n4,Navy shoes,navy\n")
    return path


def table(tmp_path):
    return ProductTable(CatalogueFolder(tmp_path / "data").current())


def test_a_catalogue_is_indexed_changed_pruned_and_deleted_from(run, saved_model, catalogue, tmp_path):
    printed = run(catalogue, "--model", saved_model, "--errors", tmp_path / "logs" / "errors.csv")
    assert "title <- title" in printed and "3 added, 0 replaced, 0 as before; 3 encoded" in printed
    assert "1 rows left out, 0 with a loss:\n  shop.csv line 4: no product id" in printed
    assert "3 products in" in printed and "search compares with all of them" in printed
    (error,) = list(csv.DictReader((tmp_path / "logs" / "errors.csv").open(newline="")))
    assert error["row"] == "2" and error["message"] == "shop.csv line 4: no product id"

    catalogue.write_text("id,title,colour\n1,Red mug,dark red\n5,Teapot,\n")
    printed = run("--catalogue", catalogue, "--prune", "true")  # the model is known by now
    assert "1 added, 1 replaced, 0 as before; 1 encoded" in printed
    assert "2 products deleted that the catalogue no longer has" in printed and sorted(table(tmp_path).ids()) == [
        "1",
        "5",
    ]
    assert "1 products deleted" in run("--delete", "5", "nowhere") and table(tmp_path).ids() == ["1"]
    assert not list((tmp_path / "data" / "uploads").iterdir())


def test_a_row_that_cannot_be_read_now_is_not_pruned(run, saved_model, catalogue, tmp_path):
    run(catalogue, "--model", saved_model)
    catalogue.write_text("id,title\n1,Red mug\n2,\n")
    run(catalogue, "--prune", "true")
    assert sorted(table(tmp_path).ids()) == ["1", "2"]


def test_products_stay_as_they_are_while_the_folder_of_their_pictures_is_away(run, saved_model, tmp_path, make_image):
    catalogue, pictures = tmp_path / "shop.csv", tmp_path / "pictures"
    pictures.mkdir()
    for name in ("1.png", "2.png"):
        make_image(int(name[0])).save(pictures / name)
    written = "id,title,image\n1,Red mug,pictures/1.png\n2,,pictures/2.png\n3,Teapot,pictures/never.png\n4,Shoes,\n"
    catalogue.write_text(written)
    run(catalogue, "--model", saved_model)
    before = table(tmp_path).products(["1", "2"], ["title", "images", "image_vector"])
    pictures.rename(tmp_path / "away")
    catalogue.write_text(written.replace("Red", "Navy").replace("Teapot", "Lumo teapot").replace("Shoes", "Boots"))
    printed = run(catalogue, "--prune", "true")
    assert "0 added, 2 replaced, 0 as before; 2 encoded" in printed
    assert "1 products stay as they are, for a picture that they have cannot be opened now" in printed
    assert table(tmp_path).products(["1", "2"], ["title", "images", "image_vector"]) == before
    found = table(tmp_path).products(["3", "4"], ["title"])
    assert [found[name]["title"] for name in ("3", "4")] == ["Lumo teapot", "Boots"]
    (tmp_path / "away").rename(pictures)
    assert "0 added, 1 replaced, 3 as before; 1 encoded" in run(catalogue)
    assert table(tmp_path).products(["1"], ["title"])["1"]["title"] == "Navy mug"


def test_a_catalogue_over_the_limit_of_rows_prunes_nothing(run, saved_model, catalogue, tmp_path):
    run(catalogue, "--model", saved_model)
    printed = run(catalogue, "--prune", "true", "--max_rows", "2")
    assert "was read, and nothing deleted, for it has over 2 rows; raise --max_rows" in printed
    assert sorted(table(tmp_path).ids()) == ["1", "2", "4"]


def test_a_limit_of_rows_that_cuts_is_told_at_the_end(run, saved_model, catalogue):
    catalogue.write_text("id,title\n" + ",No id\n" * 20 + "1,Red mug\n2,Blue mug\n")
    *_, told, summary = run(catalogue, "--model", saved_model, "--max_rows", "21").splitlines()
    assert told == "not all of the catalogue was read, for it has over 21 rows; raise --max_rows"
    assert summary.startswith("1 products in")
    *_, told, summary = run(catalogue, "--max_rows", "22").splitlines()
    assert "not all" not in told and summary.startswith("2 products in")


def test_who_owns_the_machine_may_give_catalogues_of_any_size(run, saved_model, catalogue, tmp_path):
    assert IndexArguments("shop.csv").max_rows is None
    assert (OWNER_LIMITS.rows, OWNER_LIMITS.file_bytes, OWNER_LIMITS.unpacked_bytes, OWNER_LIMITS.files) == (None,) * 4
    with open(tmp_path / "shop.zip", "wb") as file:
        file.seek(Limits().file_bytes)  # a hole, as before the files in an archive that unpacks itself
        with zipfile.ZipFile(file, "w") as archive:
            archive.write(catalogue, "shop.csv")
    assert "3 added" in run(tmp_path / "shop.zip", "--model", saved_model)


def test_another_model_needs_a_reindex(run, saved_model, catalogue, tiny_config, tmp_path):
    torch.manual_seed(1)
    for part in build_mini(tiny_config, ["navy mug", "red shoes"] * 20):
        part.save_pretrained(tmp_path / "other")
    run(catalogue, "--model", saved_model)
    first = CatalogueFolder(tmp_path / "data").current()
    with pytest.raises(ValueError, match="this encoder is another one .* index the catalogue again .*--reindex true"):
        run(catalogue, "--model", tmp_path / "other")
    assert CatalogueFolder(tmp_path / "data").current() == first
    assert "3 products in" in run("--model", tmp_path / "other", "--reindex", "true")
    assert CatalogueFolder(tmp_path / "data").model() == str(tmp_path / "other")
    assert "3 products in" in run("--reindex", "true")  # nothing left to do


def test_a_check_compares_all_files_with_their_checksums(run, saved_model, catalogue, tmp_path):
    with pytest.raises(FileNotFoundError, match="no index there"):
        run("--check", "true")
    run(catalogue, "--model", saved_model)
    printed = run("--check", "true")
    assert "1 files in" in printed and "are as they were written" in printed and "products in" not in printed
    (file,) = CatalogueFolder(tmp_path / "data").current().glob("products.lance/data/*.lance")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name}: damaged; index the catalogue again in another data folder"):
        run("--check", "true")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "nothing to do"),
        (["--prune", "true", "--delete", "1"], "prune needs the catalogue"),
        (["--catalogue", "shop.csv", "--max_rows", "0"], "max_rows=0"),
        (["--catalogue", "shop.csv", "--image_root", "nowhere"], "image_root=nowhere is no folder"),
        (["--catalogue", "shop.csv", "--errors", "."], "errors: . is a folder; give a file in a folder"),
    ],
)
def test_wrong_options_are_refused(run, options, told):
    with pytest.raises(ValueError, match=told):
        run(*options)


@pytest.mark.parametrize("out", ["vectors", "vectors.lance"])
def test_vectors_that_were_written_are_taken_and_only_what_changed_is_encoded(run, saved_model, shop, tmp_path, out):
    products, out = tmp_path / "products.parquet", tmp_path / out
    changed = shop.products.to_list()
    titles = [
        "Lumo  red\tmug ",
        "R&amp;D <b>mug</b> &Eacute;t&eacute;",
        "mug " * 400,
        "nan",
    ]  # one of a product with a picture
    for product, title in zip(changed[5:9], titles, strict=True):
        product["title"] = title
    Dataset.from_list(changed, features=shop.products.features).to_parquet(products)
    options = {"views": ["text", "image", "multimodal"], "batch_size": 4}
    encode_catalogue(EncodeArguments(str(saved_model), [str(products)], str(out), **options), progress=False)
    changed[4]["title"] = "Lumo red mug"
    Dataset.from_list(changed, features=shop.products.features).to_parquet(products)
    printed = run(products, "--model", saved_model, "--vectors", out)
    assert f"24 added, 0 replaced, 0 as before; 23 taken from {out}, 1 encoded" in printed
    taken = {view: dict(zip(*table(tmp_path).vectors(view), strict=True)) for view in options["views"]}
    run(products, "--model", saved_model, "--data_dir", tmp_path / "fresh")
    for view, vectors in taken.items():
        ids, fresh = ProductTable(CatalogueFolder(tmp_path / "fresh").current()).vectors(view)
        assert sorted(ids) == sorted(vectors)
        np.testing.assert_allclose(np.stack([vectors[name] for name in ids]), fresh, atol=1e-5)


def test_vectors_as_a_gpu_makes_them_are_taken_and_those_of_float16_are_refused_with_the_dtype_that_the_index_needs(
    run, saved_model, shop, tmp_path
):
    products, out = tmp_path / "products.parquet", tmp_path / "vectors"
    shop.products.to_parquet(products)
    dtype = load_for_encoding(str(saved_model), gpu=True, on_cpu=True)[0].dtype
    assert dtype == torch.bfloat16
    options = {"views": ["text", "image", "multimodal"], "batch_size": 4}
    given = EncodeArguments(str(saved_model), [str(products)], str(tmp_path / "gpu"), dtype="bfloat16", **options)
    encode_catalogue(given, progress=False)
    taken = run(products, "--model", saved_model, "--vectors", tmp_path / "gpu", "--data_dir", tmp_path / "other")
    assert "24 taken from" in taken and ", 0 encoded" in taken
    given = EncodeArguments(str(saved_model), [str(products)], str(out), dtype="float16", **options)
    encode_catalogue(given, progress=False)
    way = "made with weights in float16, the index needs float32; encode again with --dtype float32 --overwrite true"
    with pytest.raises(ValueError, match=way):
        run(products, "--model", saved_model, "--vectors", out)
    given = EncodeArguments(str(saved_model), [str(products)], str(out), dtype="float32", overwrite=True, **options)
    encode_catalogue(given, progress=False)
    assert f"24 taken from {out}, 0 encoded" in run(products, "--model", saved_model, "--vectors", out)


def test_vectors_that_do_not_fit_are_refused(run, saved_model, shop, tmp_path):
    products, out = tmp_path / "products.parquet", tmp_path / "vectors"
    shop.products.to_parquet(products)
    encode_catalogue(EncodeArguments(str(saved_model), [str(products)], str(out)), progress=False)
    with pytest.raises(ValueError, match="views is .*the index needs .*again with --views text image multimodal"):
        run(products, "--model", saved_model, "--vectors", out)
    told = json.loads((tmp_path / "vectors.json").read_text())
    told["identity"] |= {"views": ["text", "image", "multimodal"], "fingerprint": "0" * 32}
    (tmp_path / "vectors.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="made with another encoder.*with that of the index, --dtype float32"):
        run(products, "--model", saved_model, "--vectors", out)
    with pytest.raises(FileNotFoundError, match="no vectors there"):
        run(products, "--model", saved_model, "--vectors", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="give one"):
        run("--delete", "p1", "--vectors", out)
