"""What a product's texts say it is: brand, colour, material, size, pattern, use, audience and noun."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..shards import write_text
from .words import Key, Token, audience_of, key_of, kind_of_attribute, seed_values, tokens

KINDS = ("brand", "audience", "use", "pattern", "colour", "material", "size", "noun")
TRUSTED = ("title", "attributes", "category_path")  # a description also compares, and may be of another variant
FORMAT = 1
MIN_PRODUCTS = 2  # a value counts when it is seen in so many products
MAX_KEY = 6  # most words of a value
MAX_CHARACTERS = 60
MAX_TEXT = 4000  # characters that are read of a text
# Where a title's own words end and what is hung on them begins: "Tee - Blue", "Mug with lid".
TITLE_END = re.compile(r"[,;|(\[]|\s[-\u2013\u2014/]\s|\s(?:with|for|in|by|from|und|mit|für|pour|avec|con)\s")
_MANY_VALUES = re.compile(r"\s*[|;,/]\s*")
_CONJUNCTION = re.compile(r"\s*(?:[&/+,]|\b(?:and|und|et|y|e|en|og)\b)\s*", re.IGNORECASE)
_BREAK = re.compile(r"[,;:|()\[\]/!?]|\s[-\u2013\u2014]\s|[.]\s")
_DENIES_NEXT = frozenset("no not without non faux imitation fake unlike never ohne kein keine sans sin senza".split())
_DENIES_LAST = frozenset("free look like effect style optik frei".split())


class Entity(NamedTuple):
    """Something that a product's texts say of it.

    Attributes:
        kind: one of KINDS.
        value: as the catalogue writes it.
        source: "title", "attributes", "category_path" or "description".
    """

    kind: str
    value: str
    source: str


class Match(NamedTuple):
    """A value of the lexicon found in a text, at text[start:end]; `key` is what its spellings have in common."""

    start: int
    end: int
    kind: str
    key: Key


class Lexicon:
    """The values that a catalogue uses, and how its titles use them.

    Words of general meaning (colours, materials, patterns, uses and audiences in several languages) are always known;
    what the catalogue itself teaches comes from `build`.

    Args:
        values: kind -> value as the catalogue writes it -> number of products.
        habits: leaf category, in folded words -> how many of its titles name a kind, one pattern, use, audience or
            noun ("use:casual"), an audience behind "for" ("behind"), anything ("titles"). "" is the whole catalogue.
        catalogue_words: folded words that its texts use, without rare names.
        adjectives_first: whether its titles say "red shirt" rather than "chemise rouge".

    Example:
        >>> lexicon = Lexicon.build(products)
        >>> lexicon.entities(products[0])
        (Entity(kind='brand', value='Lumo', source='title'), Entity(kind='colour', value='red', source='attributes'))
    """

    def __init__(
        self,
        values: Mapping[str, Mapping[str, int]],
        habits: Mapping[str, Mapping[str, int]] | None = None,
        catalogue_words: Iterable[str] = (),
        adjectives_first: bool = True,
    ) -> None:
        self.values = {kind: dict(values.get(kind, {})) for kind in KINDS}
        self.habits = {leaf: dict(counts) for leaf, counts in (habits or {}).items()}
        self.adjectives_first = adjectives_first
        known: dict[Key, tuple[int, str, str]] = {}  # key -> (products, kind, value)
        for kind, key, value in _seeds():
            known.setdefault(key, (0, kind, value))
        for kind, counts in self.values.items():
            for value, count in counts.items():
                key = key_of(value)
                if key and count > known.get(key, (0,))[0]:
                    known[key] = (count, kind, value)
        self._known = known
        self.catalogue_words = frozenset(catalogue_words)
        self.common_words = self.catalogue_words.union(*known)
        self._starting: dict[str, list[Key]] = {}
        for key in sorted(known, key=lambda key: (-len(key), key)):
            if len("".join(key)) > 1:  # a lone letter or character stands in too many words
                self._starting.setdefault(key[0], []).append(key)

    @classmethod
    def build(cls, products: Iterable[Mapping[str, Any]]) -> Lexicon:
        """Learn the lexicon of a catalogue, reading it once and keeping no products.

        Args:
            products: rows in `PRODUCT_FEATURES`; images are not looked at.
        """
        from .catalogue_survey import Survey

        survey = Survey()
        for product in products:
            survey.add(product)
        return survey.lexicon()

    def save(self, path: str | os.PathLike) -> None:
        """Write the lexicon as JSON; a reader sees the old file or the new one, never half of one.

        Args:
            path: of the file; its folder must be there.
        """
        path = Path(path)
        content = {
            "format": FORMAT,
            "values": self.values,
            "habits": self.habits,
            "catalogue_words": sorted(self.catalogue_words),
            "adjectives_first": self.adjectives_first,
        }
        write_text(path, json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Lexicon:
        """Read what `save` has written.

        Raises:
            ValueError: the file is no lexicon; the message names it.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("of another version")
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: is no lexicon ({error}); build it again") from error

    def kind(self, key: Key) -> str | None:
        """The kind of a value, or None if the lexicon does not know it."""
        return self._known[key][1] if key in self._known else None

    def value(self, key: Key) -> str:
        """How the catalogue writes a value that the lexicon knows."""
        return self._known[key][2]

    def count(self, key: Key) -> int:
        """In how many products a value was seen; 0 for one the catalogue did not teach."""
        return self._known[key][0] if key in self._known else 0

    def find(self, text: str) -> list[Match]:
        """The values in a text, longest first where several begin at one word, none overlapping, in reading order."""
        return list(self._matches(text, tokens(text)))

    def entities(self, product: Mapping[str, Any]) -> tuple[Entity, ...]:
        """What the product's title, attributes, category path and description say of it, each thing once.

        An attribute whose name says its kind ("baseColour") is taken at its word, also where the value is new to the
        lexicon, and so is the leaf category; other texts are searched for values the lexicon knows. What a
        description only denies or compares with ("no leather", "leather look") is left out.

        Args:
            product: a row in `PRODUCT_FEATURES`; columns may be missing or null.
        """
        found: dict[tuple[str, Key], Entity] = {}

        def add(kind: str, key: Key, value: str, source: str) -> None:
            found.setdefault((kind, key), Entity(kind, value, source))

        title = text_of(product.get("title"))
        for match in self.find(title):
            add(match.kind, match.key, self.value(match.key), "title")
        for name, value in attributes_of(product):
            kind = kind_of_attribute(name)
            for part in split_values(value):
                if kind and (key := key_of(part)):
                    add(kind, key, part, "attributes")
                elif not kind:
                    for match in self.find(part):
                        add(match.kind, match.key, self.value(match.key), "attributes")
        path = path_of(product)
        for level in path:
            for match in self.find(level):
                add(match.kind, match.key, self.value(match.key), "category_path")
        for noun in nouns_of_leaf(path[-1]) if path else ():
            if self.kind(key := key_of(noun)) in (None, "noun"):
                add("noun", key, noun, "category_path")
        description = text_of(product.get("description"))
        words = tokens(description)
        for match in self._matches(description, words):
            if not is_denied(match, words):
                add(match.kind, match.key, self.value(match.key), "description")
        return tuple(found.values())

    def naming_share(self, leaf: str, what: str, least_titles: int = 8) -> float | None:
        """How many of the catalogue's titles in a category name something.

        Args:
            leaf: the category's name; "" for the whole catalogue.
            what: a kind; or "pattern:", "use:", "audience:" or "noun:" and a value in folded words; or
                "behind", an audience that follows "for".
            least_titles: with fewer titles nothing can be said.

        Returns:
            A share of the titles, or None where too few are known.
        """
        counts = self.habits.get(" ".join(key_of(leaf)), {})
        titles = counts.get("titles", 0)
        return counts.get(what, 0) / titles if titles >= least_titles else None

    def _matches(self, text: str, words: Sequence[Token]) -> Iterator[Match]:
        keys = [word.key for word in words]
        place = 0
        while place < len(words):
            for key in self._starting.get(keys[place], ()):
                end = place + len(key)
                if tuple(keys[place:end]) == key:
                    span = words[place].start, words[end - 1].end
                    if len(key) == 1 or not _BREAK.search(text, *span):
                        yield Match(*span, self._known[key][1], key)
                        place = end
                        break
            else:
                place += 1


class SpacyEntities:
    """More entities from a spaCy pipeline: its named entities and, where it parses, the nouns of its noun chunks.

    Labels that mean one of the kinds are taken (ORG and BRAND as brand, COLOR as colour, and so on); others are not.

    Args:
        model: name or folder of an installed pipeline.

    Raises:
        ValueError: spaCy or the pipeline is not installed.
    """

    LABELS = {"org": "brand", "quantity": "size"}

    def __init__(self, model: str) -> None:
        try:
            import spacy
        except ImportError as error:
            raise ValueError('entities by spaCy need it; pip install "moon2[augment]" spacy') from error
        try:
            self.pipeline = spacy.load(model)
        except OSError as error:
            raise ValueError(
                f"{model}: no such spaCy pipeline; python -m spacy download NAME, or give its folder"
            ) from error

    def entities(self, products: Sequence[Mapping[str, Any]]) -> list[tuple[Entity, ...]]:
        """Entities of each product's title and description, each thing once.

        Args:
            products: N rows in `PRODUCT_FEATURES`.

        Returns:
            N tuples.
        """
        texts, owners = [], []
        for row, product in enumerate(products):
            for source in ("title", "description"):
                if text := text_of(product.get(source)):
                    texts.append(text)
                    owners.append((row, source))
        found: list[dict[tuple[str, Key], Entity]] = [{} for _ in products]
        for (row, source), document in zip(owners, self.pipeline.pipe(texts), strict=True):
            spans = [(self.LABELS.get(span.label_.lower()) or kind_of_attribute(span.label_), span.text)
                     for span in document.ents]  # fmt: skip
            if document.has_annotation("DEP"):
                spans += [("noun", chunk.root.text) for chunk in document.noun_chunks]
            for kind, value in spans:
                if kind and (key := key_of(value)):
                    found[row].setdefault((kind, key), Entity(kind, value, source))
        return [tuple(of_product.values()) for of_product in found]


@cache
def _seeds() -> tuple[tuple[str, Key, str], ...]:
    return tuple((kind, key_of(value), value) for kind, value in seed_values())


def text_of(value: Any) -> str:
    """The beginning of a product's text, with HTML entities written out; "" where there is none."""
    return html.unescape(value[:MAX_TEXT]) if isinstance(value, str) else ""


def attributes_of(product: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of a product's attributes, with HTML entities written out."""
    return [(text_of(a.get("name")), text_of(a.get("value"))) for a in product.get("attributes") or () if a]


def path_of(product: Mapping[str, Any]) -> list[str]:
    """The levels of a product's category path, coarse to fine, with HTML entities written out."""
    return [level for level in map(text_of, product.get("category_path") or ()) if level.strip()]


def split_values(value: str) -> list[str]:
    """The values of an attribute that holds several ("Cotton|Polyester"), without those too long to be one."""
    parts = (
        [part.strip() for part in _MANY_VALUES.split(value)] if not value.strip()[:1].isdigit() else [value.strip()]
    )
    return [part for part in parts if 0 < len(part) <= MAX_CHARACTERS and len(key_of(part)) <= MAX_KEY]


def nouns_of_leaf(leaf: str) -> list[str]:
    """What the name of a leaf category calls its products: "Kajal and Eyeliner" both."""
    parts = [part.strip() for part in _CONJUNCTION.split(leaf)]
    return [part for part in parts if part and audience_of(key_of(part)) is None and len(key_of(part)) <= MAX_KEY]


def is_denied(match: Match, words: Sequence[Token]) -> bool:
    """Whether a text only denies a value or compares with it: "no leather", "faux fur", "silk look".

    Args:
        match: the value in the text.
        words: the text's tokens.
    """
    before = next((word.key for word in reversed(words) if word.end <= match.start), "")
    after = next((word.key for word in words if word.start >= match.end), "")
    return before in _DENIES_NEXT or after in _DENIES_LAST
