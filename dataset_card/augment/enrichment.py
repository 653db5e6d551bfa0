"""Enriched titles T+ (paper: T+ = MLLM_text(T, I, E)), by a template or by a vision-language model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .entities import TRUSTED, Entity, Lexicon, SpacyEntities, text_of
from .title_weaver import MAX_CHARACTERS, weave
from .words import key_of, tokens

if TYPE_CHECKING:  # the template needs neither pictures nor torch
    from PIL import Image

    from .vision_language import VisionLanguageModel

PROMPT = """\
You write product titles for an online shop. Write a better title for the product{in_pictures}.

Title: {title}
{facts}
Rules:
- Answer with the new title alone: one line, at most {words} words, in the language of the title.
- Keep the product's brand, name and kind from the title, and every number.
- Add what the facts say and the title does not.{from_pictures}
- Name no brand, colour, material, size or number that stands neither in the title nor in the facts.
- Write words that you add in lower case unless they are names. No praise, no price, no quotation marks."""
_LABEL = re.compile(  # "Here is the title:", "New title:"
    r"^(?:(?:here is|here's|sure)\b[^:]*|[^:\w]*(?:(?:new|enriched|better|improved|product)\s+)*"
    r"(?:title|titel|titre|t\u00edtulo|titolo|\u6807\u9898|\u6a19\u984c|\u30bf\u30a4\u30c8\u30eb))\s*[:\uff1a]",
    re.IGNORECASE,
)
TOKENS_OF_WORD, SPARE_TOKENS = 3, 32  # of a title; words of shops are rare ones, which tokenizers cut up
FACT_NAMES = {"audience": "for", "use": "use", "noun": "kind"}


class TemplateEnricher:
    """Weaves what a product's attributes and category say into its title; needs no model and is deterministic.

    Args:
        lexicon: of the catalogue.
        spacy: adds entities of its own to the lexicon's.
    """

    def __init__(self, lexicon: Lexicon, spacy: SpacyEntities | None = None) -> None:
        self.lexicon = lexicon
        self.spacy = spacy

    def enrich(
        self, products: Sequence[Mapping[str, Any]], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[str]:
        """Enriched titles of products.

        Args:
            products: N rows in `PRODUCT_FEATURES`; columns may be missing or null.
            images: not looked at.

        Returns:
            N titles: each keeps the title's words and adds what is missing, or says the same in another order; the
            title itself where neither can be done well; "" without title and noun.
        """
        found = product_entities(products, self.lexicon, self.spacy)
        return [weave(*both, self.lexicon) for both in zip(products, found, strict=True)]


class VlmEnricher:
    """Has a vision-language model write the title from title, entities and pictures; the guard must check its lines.

    Args:
        vlm: the model.
        lexicon: of the catalogue.
        spacy: adds entities of its own to the lexicon's.
    """

    def __init__(self, vlm: VisionLanguageModel, lexicon: Lexicon, spacy: SpacyEntities | None = None) -> None:
        self.vlm = vlm
        self.lexicon = lexicon
        self.spacy = spacy

    def enrich(
        self, products: Sequence[Mapping[str, Any]], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[str]:
        """Enriched titles of products, as the model answers, cleaned of what is no title.

        Args:
            products: N rows in `PRODUCT_FEATURES`; columns may be missing or null.
            images: of each product, for the model to look at.

        Returns:
            N titles; "" where the answer holds none, was cut and so is in `vlm.cut`, or the model failed, for the
            reason in `vlm.failures.reasons`.

        Raises:
            ValueError: the model fails at every product.
        """
        images = [[]] * len(products) if images is None else images
        found = product_entities(products, self.lexicon, self.spacy)
        prompts = [build_prompt(p, e, bool(i)) for p, e, i in zip(products, found, images, strict=True)]
        lengths = [TOKENS_OF_WORD * most_words(product) + SPARE_TOKENS for product in products]
        answers = self.vlm.generate(prompts, images, lengths)
        return ["" if row in self.vlm.cut else clean_line(answer) for row, answer in enumerate(answers)]


def product_entities(
    products: Sequence[Mapping[str, Any]], lexicon: Lexicon, spacy: SpacyEntities | None = None
) -> list[tuple[Entity, ...]]:
    """What every product's texts say, by the lexicon and, where given, spaCy; each thing once.

    Args:
        products: N rows in `PRODUCT_FEATURES`.
        lexicon: of the catalogue.
        spacy: a pipeline of spaCy.
    """
    found = [lexicon.entities(product) for product in products]
    if spacy is None:
        return found
    both = []
    for known, more in zip(found, spacy.entities(products), strict=True):
        keys = {key_of(entity.value) for entity in known}
        both.append((*known, *(entity for entity in more if key_of(entity.value) not in keys)))
    return both


def build_prompt(product: Mapping[str, Any], entities: Sequence[Entity], with_pictures: bool) -> str:
    """What a vision-language model is asked.

    Args:
        product: a row in `PRODUCT_FEATURES`.
        entities: what its texts say.
        with_pictures: whether it gets the product's pictures too.
    """
    facts: dict[str, list[str]] = {}
    for entity in entities:
        if entity.source in TRUSTED or entity.kind in ("material", "pattern"):
            facts.setdefault(FACT_NAMES.get(entity.kind, entity.kind), []).append(_one_line(entity.value))
    title = _title(product)
    return PROMPT.format(
        title=title or "(none)",
        facts="".join(f"{name}: {', '.join(values[:5])}\n" for name, values in facts.items()),
        words=most_words(product),
        in_pictures=" in the picture" if with_pictures else "",
        from_pictures=" Shape and pattern may also come from the picture." if with_pictures else "",
    )


def most_words(product: Mapping[str, Any]) -> int:
    """How many words the new title of a product may have.

    Args:
        product: a row in `PRODUCT_FEATURES`.
    """
    return max(16, len(tokens(_title(product))) + 10)


def clean_line(answer: str) -> str:
    """The title in a model's answer, without thoughts, preamble, label, markdown and quotation marks.

    Args:
        answer: as generated.

    Returns:
        One line; "" if there is none.
    """
    answer = answer.rpartition("</think>")[2].partition("<think>")[0]  # a prompt may have opened the thoughts
    for line in answer.splitlines():
        line = re.sub(r"^\s*(?:#+\s|[-*\u2022>]\s|\d+[.)]\s|```\w*)", "", _one_line(line))
        line = re.sub(r"\*\*|__|`", "", line).strip()
        line = _LABEL.sub("", line)
        line = line.strip(" \t\"'\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb\u300c\u300d*_")
        line = line.rstrip(".") if not line.endswith("..") and line.count(".") == 1 else line
        if line and not line.endswith((":", "\uff1a")):
            return line
    return ""


def _title(product: Mapping[str, Any]) -> str:
    return _one_line(text_of(product.get("title")))[: 2 * MAX_CHARACTERS]


def _one_line(text: str) -> str:
    return " ".join(text.split())
