from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from moon2_dataset import load_products
from moon2_dataset.augment.enrichment import (
    PROMPT,
    TemplateEnricher,
    VlmEnricher,
    build_prompt,
    clean_line,
    product_entities,
)
from moon2_dataset.augment.entities import Entity, Lexicon, SpacyEntities
from moon2_dataset.augment.faithfulness import unsupported_claims
from moon2_dataset.augment.vision_language import VisionLanguageModel
from moon2_dataset.augment.words import key_of


def product(title, path=("Shop", "Mugs"), description="", product_id="p", **attributes):
    return {
        "product_id": product_id, "title": title, "description": description, "category_path": list(path),
        "attributes": [{"name": name, "value": value} for name, value in attributes.items()],
    }  # fmt: skip


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon.build(
        product(f"{brand} {colour} mug {number}", brand=brand, colour=colour)
        for brand in ("Nordvik", "Lumo") for colour in ("red", "navy blue") for number in range(3)
    )  # fmt: skip


@pytest.fixture(scope="module")
def vlm(tiny, tmp_path_factory):
    """A random Qwen3-VL that reads a real chat."""
    folder = tmp_path_factory.mktemp("vlm")
    moon2, processor = tiny
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>"
    )
    text, vision = (
        {name: value for name, value in part.to_dict().items() if name != "model_type"}
        for part in (moon2.config.text_config, moon2.config.vision_config)
    )
    ids = {n: getattr(processor, n) for n in ("image_token_id", "vision_start_token_id", "vision_end_token_id")}
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text | {"vocab_size": len(tokenizer)}, vision_config=vision, **ids)
    ).save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vlm = VisionLanguageModel(str(folder), device="cpu", batch_size=2, max_new_tokens=90)
    vlm.greedy.eos_token_id = list(range(0, len(tokenizer), 2))  # or random weights would never end an answer
    return vlm


def test_the_template_takes_no_pictures_and_keeps_the_order_of_products(lexicon, make_image):
    rows = [product("Lumo mug", colour="red", product_id=str(number)) for number in range(4)]
    rows += [product("Nordvik red mug"), product("", brand="Lumo", colour="red"), product("", path=())]
    enricher = TemplateEnricher(lexicon)
    lines = enricher.enrich(rows, [[make_image(1)]] * len(rows))
    assert lines == enricher.enrich(rows) == [line for row in rows for line in enricher.enrich([row])]
    assert set(lines[:4]) <= {"Lumo red mug", "Lumo mug in red"}
    assert lines[5:] == ["Lumo red mug", ""] and enricher.enrich([]) == []


def test_entities_of_spacy_come_into_template_and_facts(lexicon, tmp_path):
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "MATERIAL", "pattern": "bone china"}, {"label": "COLOR", "pattern": "red"}]
    )
    pipeline.to_disk(tmp_path)
    row = product("Lumo red mug", description="Fine bone china.")
    both = product_entities([row], lexicon, SpacyEntities(str(tmp_path)))
    assert both == [(*lexicon.entities(row), Entity("material", "bone china", "description"))]
    enriched = TemplateEnricher(lexicon, SpacyEntities(str(tmp_path))).enrich([row])[0]
    assert "bone china" in enriched and "bone china" not in TemplateEnricher(lexicon).enrich([row])[0]
    assert "material: bone china" in build_prompt(row, both[0], with_pictures=False)


def test_the_prompt_holds_title_facts_and_rules_but_no_hearsay(lexicon):
    row = product("Lumo\nmug", description="Also comes in navy blue; of wool.", colour="red|black", gender="kids")
    prompt = build_prompt(row, lexicon.entities(row), with_pictures=True)
    assert "Title: Lumo mug\n" in prompt and "colour: red, black\n" in prompt and "for: kids\n" in prompt
    assert "navy" not in prompt and "material: wool" in prompt  # a description may speak of other variants
    assert "picture" in prompt and "picture" not in build_prompt(row, (), with_pictures=False)
    assert prompt.count("{") == 0 and len(PROMPT) < 1200
    braces = product("{title} {0}", colour="{facts}")
    assert "{title} {0}" in build_prompt(braces, lexicon.entities(braces), with_pictures=False)


def test_a_model_answers_from_prompt_and_picture(lexicon, vlm, make_image):
    rows = [product("Lumo mug", colour="red"), product("Nordvik mug"), product("Lumo <|image_pad|> mug")]
    images = [[make_image(1)], [], [make_image(2), make_image(3)]]
    enricher = VlmEnricher(vlm, lexicon)
    lines = enricher.enrich(rows, images)
    assert vlm.failures.reasons == {} and all(lines)
    prompts = [build_prompt(row, lexicon.entities(row), bool(i)) for row, i in zip(rows, images, strict=True)]
    assert lines == [clean_line(answer) for answer in vlm.generate(prompts, images)]
    blind = vlm.generate([build_prompt(rows[0], lexicon.entities(rows[0]), with_pictures=False)], [[]])
    assert enricher.enrich(rows[:1]) == [clean_line(blind[0])]


def test_a_title_has_room_for_all_its_words_and_one_that_is_cut_is_left_out(lexicon, vlm, monkeypatch):
    long = product("Lumo mug " + "rain storm hood city bike " * 7)
    monkeypatch.setattr(vlm.greedy, "eos_token_id", vlm.processor.image_token_id)  # which none writes
    assert VlmEnricher(vlm, lexicon).enrich([long]) == [""] and vlm.cut == {0}
    assert "at most 47 words" in build_prompt(long, (), with_pictures=False)
    assert vlm.greedy.max_new_tokens == 3 * 47 + 32
    assert vlm.generate(["Lumo mug"], [[]])[0]  # whoever else asks may use what there was


def test_a_product_that_the_model_cannot_read_is_empty_and_counted(lexicon, vlm, make_image):
    rows = [product("Lumo mug"), product("Nordvik mug")]
    thin = Image.new("RGB", (4000, 2))  # the image processor refuses such a shape
    lines = VlmEnricher(vlm, lexicon).enrich(rows, [[thin], [make_image(1)]])
    assert lines[0] == "" and lines[1] and list(vlm.failures.reasons) == [0]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("Lumo Red Mug", "Lumo Red Mug"),
        ('"Lumo Red Mug"', "Lumo Red Mug"),
        ("Title: Lumo Red Mug\n\nThis title is better.", "Lumo Red Mug"),
        ("**New title:** “Lumo Red Mug”", "Lumo Red Mug"),
        ("Here is the improved title:\n\n- Lumo  Red\tMug.", "Lumo Red Mug"),
        ("Sure! Here you go: Lumo Red Mug", "Lumo Red Mug"),
        ("# Lumo Red Mug", "Lumo Red Mug"),
        ("```\nLumo Red Mug\n```", "Lumo Red Mug"),
        ("<think>Red? It is\nred.</think>Lumo Red Mug", "Lumo Red Mug"),
        ("The title is\nLumo mug.\n</think>\n\nLumo Red Mug", "Lumo Red Mug"),
        ("<think>and so on", ""),
        ("1. Lumo 1.5 l Mug", "Lumo 1.5 l Mug"),
        ("1.5 l Lumo Mug", "1.5 l Lumo Mug"),
        ("U.S. Polo Assn. Men Shirt No. 5", "U.S. Polo Assn. Men Shirt No. 5"),
        ("Mug #5 - 10 * 20 cm", "Mug #5 - 10 * 20 cm"),
        ("标题：红色马克杯", "红色马克杯"),
        ("", ""), ("\n \n", ""), ('""', ""), ("Title:", ""),
    ],
)  # fmt: skip
def test_answers_are_cleaned_of_what_is_no_title(answer, line):
    assert clean_line(answer) == line


@given(st.text(alphabet=st.characters(codec=None), max_size=120))
def test_a_clean_line_is_one_line_and_stays_so(answer):
    line = clean_line(answer)
    assert line == line.strip() and len(line.splitlines()) <= 1


@pytest.mark.parametrize(("folder", "split", "changed"), [("fashion", "validation", 0.3), ("sportswear", "test", 0.9)])
def test_real_titles_keep_their_words_and_stay_faithful(shared_data, folder, split, changed):
    rows = load_products(shared_data / folder / f"products-{split}.parquet").remove_columns("images").to_list()
    lexicon = Lexicon.build(rows)
    lines = TemplateEnricher(lexicon).enrich(rows)
    for row, line in zip(rows, lines, strict=True):
        assert set(key_of(row["title"])) <= set(key_of(line)) and len(line) <= max(150, len(row["title"]))
    assert sum(line != row["title"] for row, line in zip(rows, lines, strict=True)) >= changed * len(rows)
    rejected = sum(bool(unsupported_claims(line, row, lexicon)) for row, line in zip(rows, lines, strict=True))
    assert rejected <= 0.02 * len(rows)
