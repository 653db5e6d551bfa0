"""The guard of enriched titles: what one may not claim, because nothing the shop wrote of the product says so."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .entities import MAX_TEXT, Lexicon, Match, attributes_of, is_denied, path_of, text_of
from .words import (
    NUMBER_WORDS,
    SHADE_WORDS,
    SIZE_WORDS,
    UNITS,
    Key,
    Token,
    audience_of,
    colour_families,
    is_plain_colour,
    key_of,
    kind_of_attribute,
    tokens,
)

MORE_WORDS = 14  # than twice the title's: beyond that a line is no title any more
LEAST_KEPT = 1 / 3  # of the title's words
MOST_REPEATS = 3
USUAL_NOUN = 0.05  # share of a category's titles from which on a noun may stand for the title's own
_SIZE = re.compile(r"(?<![\w.&'\u2019+-])(?:\d{1,2}X[SL]|X{0,4}[SL]|M)(?![\w.&'\u2019+])")
_TOUCHING_UNITS = frozenset(("in", "m", "g", "l", "k", "v", "w", "d"))  # as words of their own they mean other things
_SIGNS = {"%": "%", '"': "in", "\u2033": "in", "\u201d": "in", "''": "in", "\u00b0": "\u00b0"}
_IMITATIONS = frozenset("faux vegan pu imitation synthetic artificial fake".split())


def unsupported_claims(enriched: str, product: Mapping[str, Any], lexicon: Lexicon) -> list[str]:
    """What an enriched title claims without support in title, description, attributes and category path.

    Brands, colours, materials, sizes, audiences and numbers with their units must be supported; so must capitalised
    words that the catalogue does not use, since they may be brands it does not know. A shade supports its family
    ("navy" says "blue"), never the other way round. The line must keep the product's noun and a third of the title's
    words, be one line, not much longer than the title, not stammer, and stay in the product's scripts.

    Args:
        enriched: the line to check.
        product: a row in `PRODUCT_FEATURES`; columns may be missing or null.
        lexicon: of the catalogue.

    Returns:
        One entry for each claim, "colour: Navy Blue"; empty where the line is faithful.

    Example:
        >>> unsupported_claims("Lumo navy mug 300 ml", {"title": "Lumo mug"}, lexicon)
        ['colour: navy', 'number: 300 ml']
    """
    if not enriched.strip():
        return ["empty: no text"]
    if enriched == product.get("title"):
        return []
    if len(enriched) > MAX_TEXT:
        return [f"form: {len(enriched)} characters"]
    evidence = _Evidence(product, lexicon)
    words = tokens(enriched)
    claims = [*_form(enriched, words, evidence), *_noun(enriched, words, product, lexicon)]
    matches = lexicon.find(enriched)
    for match in matches:
        said = enriched[match.start : match.end]
        if match.kind in _SUPPORTED and not _SUPPORTED[match.kind](match.key, evidence):
            claims.append(f"{match.kind}: {said}")
        elif match.kind == "colour" and (shade := _shade_before(match, words)):
            if not evidence.says((shade.key, *match.key)):
                claims.append(f"colour: {enriched[shade.start : match.end]}")
    claims += [
        f"number: {' '.join(filter(None, n))}" for n in _numbers(enriched, words) if not evidence.has_number(*n)
    ]
    claims += [f"size: {size}" for size in sorted(_sizes(enriched, words) - evidence.sizes)]
    known = {place for match in matches for place in range(match.start, match.end)}
    for word in words:
        said = enriched[word.start : word.end]
        strange = said[0].isupper() and len(said) > 2 and word.key.isalpha() and word.start not in known
        if strange and word.key not in lexicon.common_words and not evidence.says((word.key,)):
            claims.append(f"name: {said}")
    return list(dict.fromkeys(claims))


class _Evidence:
    """All that a product's own texts say, in the forms in which claims are looked up."""

    def __init__(self, product: Mapping[str, Any], lexicon: Lexicon) -> None:
        attributes = attributes_of(product)
        self.title = text_of(product.get("title"))
        description = text_of(product.get("description"))
        texts = [self.title, description, *path_of(product), *(value for _, value in attributes)]
        self.text = "\n".join(texts)
        self.running = ""
        self.numbers: set[tuple[str, str]] = set()
        self.sizes: set[str] = set()
        self.values: dict[str, set[Key]] = {kind: set() for kind in ("colour", "material", "audience")}
        for text in texts:
            words = tokens(text)
            self.running += f" {' '.join(word.key for word in words)} |"
            self.numbers.update(_numbers(text, words))
            self.sizes |= _sizes(text, words)
            for match in lexicon.find(text):
                if match.kind in self.values and not (text is description and is_denied(match, words)):
                    self.values[match.kind].add(match.key)
        for name, value in attributes:
            kind = kind_of_attribute(name)
            if kind in self.values:
                self.values[kind].update(key_of(part) for part in re.split(r"[|;,/]", value))
            elif kind == "size":
                self.sizes.update(_SIZE.findall(value.upper()))
            units = {UNITS[word] for word in key_of(name) if word in UNITS}
            self.numbers.update((number, unit) for number, _ in _numbers(value, tokens(value)) for unit in units)

    def says(self, key: Key) -> bool:
        """Whether the words stand somewhere, side by side."""
        return f" {' '.join(key)} " in self.running

    def has_number(self, number: str, unit: str) -> bool:
        return (number, unit) in self.numbers if unit else any(number == known for known, _ in self.numbers)


def _colour_is_supported(key: Key, evidence: _Evidence) -> bool:
    known = evidence.values["colour"]
    if any(_within(key, colour) for colour in known):
        return True
    families = frozenset().union(*map(colour_families, known))
    if is_plain_colour(key):
        return bool(colour_families(key) & families)
    shade, family = key[:-1], key[-1:]  # "navy blue" where the product is "navy"
    return shade in known and is_plain_colour(family) and bool(colour_families(family) & colour_families(shade))


def _material_is_supported(key: Key, evidence: _Evidence) -> bool:
    return any(key == m or (_within(key, m) and m[0] not in _IMITATIONS) for m in evidence.values["material"])


def _audience_is_supported(key: Key, evidence: _Evidence) -> bool:
    groups = {audience_of(known) for known in evidence.values["audience"]}
    group = audience_of(key)
    if group is None:
        return evidence.says(key)
    if group == "unisex" and {"men", "women"} <= groups:
        return True
    return group in groups or (group == "kids" and bool(groups & {"boys", "girls", "baby"}))


_SUPPORTED = {
    "brand": lambda key, evidence: evidence.says(key),
    "colour": _colour_is_supported,
    "material": _material_is_supported,
    "audience": _audience_is_supported,
    "size": lambda key, evidence: evidence.says(key),
}


def _form(enriched: str, words: list[Token], evidence: _Evidence) -> Iterator[str]:
    """What is wrong with the line as a line."""
    title = tokens(evidence.title)
    if len(enriched.strip().splitlines()) > 1:
        yield "form: several lines"
    if len(words) > 2 * len(title) + MORE_WORDS:
        yield f"form: {len(words)} words for a title of {len(title)}"
    counts, before = Counter(word.key for word in words), Counter(word.key for word in title)
    for word, count in counts.items():
        if count > max(MOST_REPEATS, before[word]) and word.isalpha() and len(word) > 1:
            yield f"form: {word} {count} times"
    kept = sum((counts & before).values())
    if kept < LEAST_KEPT * len(title):
        yield f"form: keeps {kept} of the title's {len(title)} words"
    for script in sorted(_scripts(enriched) - _scripts(evidence.text)) if _scripts(evidence.text) else ():
        yield f"script: {script}"


def _noun(enriched: str, words: list[Token], product: Mapping[str, Any], lexicon: Lexicon) -> Iterator[str]:
    """The title's noun, or one that the catalogue uses for the same category, must be there."""
    title = text_of(product.get("title"))
    nouns = [match for match in lexicon.find(title) if match.kind == "noun"]
    if not nouns:
        return
    noun = nouns[-1] if lexicon.adjectives_first else nouns[0]
    head = noun.key[-1] if lexicon.adjectives_first else noun.key[0]
    if any(word.key == head for word in words):
        return
    leaf = next(reversed(path_of(product)), None)
    said = [match.key for match in lexicon.find(enriched) if match.kind == "noun"]
    usual = [key for key in said if leaf and (lexicon.naming_share(leaf, f"noun:{' '.join(key)}") or 0) >= USUAL_NOUN]
    if not usual:
        yield f"noun: {title[noun.start : noun.end]} is gone"


def _numbers(text: str, words: list[Token]) -> Iterator[tuple[str, str]]:
    """(number, unit) of a text, unit "" where it has none; English number words up to ten count as numbers."""
    for place, word in enumerate(words):
        if word.key in NUMBER_WORDS:
            yield NUMBER_WORDS[word.key], ""
        elif word.key[0].isdigit():
            unit = next((_SIGNS[sign] for sign in _SIGNS if text.startswith(sign, word.end)), "")
            glued = word.start > 0 and text[word.start - 1].isalpha()  # the 45 of "T45 m"
            if place + 1 < len(words) and not glued:
                following = words[place + 1]
                gap = text[word.end : following.start]
                near = not gap if following.key in _TOUCHING_UNITS else gap in ("", " ", "-", "\u00a0")
                if following.key in UNITS and near:
                    unit = UNITS[following.key]
            yield word.key, unit


def _sizes(text: str, words: list[Token]) -> set[str]:
    """Sizes in letters or words: {"XL"} of "Shirt XL", {"S"} of "small bag"."""
    return {*_SIZE.findall(text), *(SIZE_WORDS[word.key].upper() for word in words if word.key in SIZE_WORDS)}


def _shade_before(match: Match, words: list[Token]) -> Token | None:
    before = next((word for word in reversed(words) if word.end <= match.start), None)
    return before if before and before.key in SHADE_WORDS and match.start - before.end <= 1 else None


def _within(key: Key, longer: Key) -> bool:
    return any(longer[start : start + len(key)] == key for start in range(len(longer) - len(key) + 1))


def _scripts(text: str) -> set[str]:
    """The scripts of a text's letters: "LATIN", "CJK", "CYRILLIC"."""
    letters = {char for char in text if char.isalpha() and not char.isascii()}
    scripts = {unicodedata.name(char, "UNKNOWN").split()[0] for char in letters}
    japanese = {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH"}
    scripts = {"CJK" if script in japanese else script for script in scripts}
    scripts -= {"MICRO", "FEMININE", "MASCULINE", "MODIFIER", "MATHEMATICAL", "FULLWIDTH", "DOUBLE-STRUCK", "SCRIPT"}
    return scripts | {"LATIN"} if any(char.isascii() and char.isalpha() for char in text) else scripts
