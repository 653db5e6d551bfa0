"""Puts what a product's texts say into its title: what to add, and where it stands as shops write it."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .entities import (
    TITLE_END,
    TRUSTED,
    Entity,
    Lexicon,
    attributes_of,
    nouns_of_leaf,
    path_of,
    text_of,
)
from .words import (
    COMMON_WORDS,
    Connectives,
    Key,
    audience_of,
    connectives,
    has_other_script,
    is_unspaced,
    key_of,
    tokens,
)

MAX_CHARACTERS = 150  # an enriched title is not longer, unless the title itself is
RANKS = {"pattern": 1, "colour": 2, "material": 3, "use": 4}  # order before the noun
IMPORTANCE = ("noun", "brand", "colour", "audience", "material", "pattern", "size", "use")  # too long: last goes
NORM = 0.5  # share of all titles from which on a category that leaves a kind out does so on purpose
SELDOM = 0.2  # a category names a kind seldom if it does so this many times less than the whole catalogue
OFTEN = 0.1  # share of a category's titles from which on a use is one that shops write there
NOUN_NAMED = 0.9  # where so many titles have a known noun, one without has a rare noun rather than none
RARE = 5  # products; of a rarer value it cannot be said that titles avoid it
ALIKE = 0.8  # how like a word of the title a value is that it already says, mistyped
_POSSESSIVE = {"men": "Men's", "women": "Women's", "boys": "Boys'", "girls": "Girls'", "kids": "Kids'"}
_PLURAL = {"men": "Men", "women": "Women", "boys": "Boys", "girls": "Girls", "kids": "Kids", "baby": "Babies"}
_JOINT = re.compile(r"\s*(?:&|/|and|und|et|y|e|con|\+)?\s*", re.IGNORECASE)


def weave(product: Mapping[str, Any], entities: Sequence[Entity], lexicon: Lexicon) -> str:
    """The title of a product with what its entities say beyond it; or, if that is nothing, in another order.

    Which of several good orders is taken depends on the product's id alone.

    Args:
        product: a row in `PRODUCT_FEATURES`; columns may be missing or null.
        entities: what its texts say.
        lexicon: of the catalogue; its titles show what is usual.

    Returns:
        The new title; the title itself where nothing can be done well; "" without title and noun.
    """
    if len(title := product.get("title") or "") > MAX_CHARACTERS:
        return title
    weaver = _Weaver(product, entities, lexicon)
    if not weaver.said:
        return weaver.composed()
    additions = weaver.additions()
    if not additions:
        said = weaver.specialised() or weaver.reordered() or weaver.said
        return said if len(said) <= MAX_CHARACTERS else weaver.said
    while additions:
        woven = weaver.woven(additions)
        if len(woven) <= MAX_CHARACTERS:
            return woven
        additions.pop(next(kind for kind in reversed(IMPORTANCE) if kind in additions))
    return weaver.said


@dataclass
class _Parts:
    """A title cut around its noun: `before`, the noun's adjectives as (kind, text), noun, what is added, `after`."""

    before: str
    adjectives: list[tuple[str, str]]
    noun: str
    behind: list[str]
    after: str


class _Weaver:
    """One product's title, what is known of it, and what to add."""

    def __init__(self, product: Mapping[str, Any], entities: Sequence[Entity], lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.entities = entities
        self.said = " ".join(text_of(product.get("title")).split())
        self.leaf = next(reversed(path_of(product)), "")
        self.words = tokens(self.said)
        self.matches = lexicon.find(self.said)
        latin = not has_other_script(self.said)
        self.small = connectives(lexicon.catalogue_words) if latin else Connectives("", "", "", "&")
        self.unspaced = is_unspaced(self.said)
        cut = TITLE_END.search(self.said)
        self.head_end = cut.start() if cut else len(self.said)
        nouns = [match for match in self.matches if match.kind == "noun" and match.end <= self.head_end]
        self.noun = (nouns[-1] if lexicon.adjectives_first else nouns[0]) if nouns else None
        first = self.matches[0] if self.matches else None
        self.brand_end = first.end if first and first.kind == "brand" and first.start <= self.words[0].start else 0
        described = text_of(product.get("description"))
        self.plain_words = {word.key for word in tokens(described) if described[word.start].islower()}
        self.plain_words.update(word for _, value in attributes_of(product) for word in key_of(value))
        digest = hashlib.blake2b(str(product.get("product_id")).encode("utf-8", "surrogatepass"), digest_size=8)
        self.order = int.from_bytes(digest.digest(), "big") % 3  # 1: audience behind the noun; 2: colour behind it

    # What is missing

    def additions(self) -> dict[str, str]:
        """Kind -> text to add, for the kinds that the title does not name and that titles of its category do."""
        kinds = {match.kind for match in self.matches}
        found = {kind: self._missing(kind) for kind in IMPORTANCE if kind not in kinds and self._is_usual(kind)}
        if "noun" in found and set(key_of(found.get("use", ""))) & set(key_of(found["noun"])):
            found["use"] = ""  # "formal shoes" are formal
        return {kind: text for kind, text in found.items() if text}

    def _missing(self, kind: str) -> str:
        if kind == "noun":
            return self._missing_noun()
        if kind == "audience":
            return self._missing_audience()
        values = [value for value in self._values(kind) if not self._is_said(value)]
        if kind in ("use", "pattern"):
            if len(values) != 1 or not self._tells_something(kind, key_of(values[0])):
                return ""
        elif kind == "size":
            values = [value for value in values if any(map(str.isdigit, value)) and len(key_of(value)) > 1]
        elif kind == "material" and len(values) > 2:  # those that the catalogue knows best
            short = [value for value in values if len(key_of(value)) <= 2]
            values = sorted(short, key=lambda value: -self.lexicon.count(key_of(value)))[:2]
        if len(values) > (2 if kind in ("colour", "material") else 1):
            return ""
        joint = "" if self.unspaced else f" {self.small.conjunction} "
        return joint.join(self._cased(value, kind) for value in values)

    def _values(self, kind: str) -> list[str]:
        """Of the attributes, and of pattern and material also a lone one in the description: it may compare."""
        given = [e.value for e in self.entities if e.kind == kind and e.source == "attributes"]
        if given or kind not in ("material", "pattern"):
            return given
        described = [e.value for e in self.entities if e.kind == kind]
        return described if len(described) == 1 else []

    def _is_usual(self, kind: str) -> bool:
        here, overall = self.lexicon.naming_share(self.leaf, kind), self.lexicon.naming_share("", kind)
        return here is None or overall is None or overall < NORM or here >= SELDOM * overall

    def _is_said(self, value: str) -> bool:
        """Whether the title has the value's words somewhere, also mistyped."""
        said = [word.key for word in self.words]
        return all(difflib.get_close_matches(word, said, 1, ALIKE) for word in key_of(value))

    def _tells_something(self, kind: str, value: Key) -> bool:
        """False for what most products are ("casual", "solid"), and for a use that the category's titles leave out."""
        of_most = 2 * self.lexicon.count(value) > sum(self.lexicon.values[kind].values())
        if kind == "use":
            share = self.lexicon.naming_share(self.leaf, f"use:{' '.join(value)}")
            return share is not None and share >= OFTEN and not of_most
        if (self.lexicon.naming_share("", kind) or 0) < OFTEN:
            return not of_most
        named = self.lexicon.naming_share("", f"{kind}:{' '.join(value)}", 1)  # "plain", which no title says
        return bool(named) or self.lexicon.count(value) < RARE

    def _missing_noun(self) -> str:
        nouns = nouns_of_leaf(self.leaf)
        if len(nouns) != 1 or not (key := key_of(nouns[0])):
            return ""
        share = self.lexicon.naming_share(self.leaf, f"noun:{' '.join(key)}")
        if share is not None and share < SELDOM:  # "Gear" is a shelf, not a thing
            return ""
        if self.said and (self.lexicon.naming_share(self.leaf, "noun") or 0) >= NOUN_NAMED:
            return ""
        last = next((word for word in reversed(self.words) if word.end <= self.head_end), None)
        if last:
            written = self.said[last.start : last.end]
            plural = written.endswith("s") and nouns[0].endswith("s")  # "Sneakers" is the noun of casual shoes
            if plural or last.key in self.plain_words or any(word.key in key for word in self.words):
                return ""
        return self._cased(self.lexicon.value(key) if self.lexicon.kind(key) == "noun" else nouns[0], "noun")

    def _missing_audience(self) -> str:
        named = {audience_of(key_of(e.value)): e.value for e in self.entities
                 if e.kind == "audience" and e.source in TRUSTED}  # fmt: skip
        named.pop(None, None)
        group = "unisex" if "unisex" in named else next(iter(named)) if len(named) == 1 else None
        if group is None or (group == "unisex" and not self.lexicon.naming_share("", "audience:unisex", 1)):
            return ""
        used = {word: count for word, count in self.lexicon.values["audience"].items()
                if audience_of(key_of(word)) == group
                and self.lexicon.naming_share("", f"audience:{' '.join(key_of(word))}", 1)}  # fmt: skip
        if used:  # as the catalogue's titles call them
            return self._cased(max(used, key=lambda word: (used[word], word)), "audience")
        if self.unspaced:
            return "" if named[group].isascii() else named[group]
        return self._cased(_POSSESSIVE.get(group, named[group]) if self._is_english() else named[group], "audience")

    # Where it stands

    def woven(self, additions: Mapping[str, str]) -> str:
        """The title with the additions in their places."""
        rest = dict(additions)
        parts = self._parts()
        brand, audience, size = (rest.pop(kind, "") for kind in ("brand", "audience", "size"))
        if noun := rest.pop("noun", ""):
            parts.before, parts.noun = self._joined(parts.before, parts.noun), noun
        for kind in RANKS:
            if (text := rest.get(kind)) and (parts.noun or kind != "use"):
                self._place(kind, text, parts)
        if audience:
            self._place_audience(audience, parts)
        adjectives = [text for _, text in parts.adjectives]
        return self._begun(brand, parts.before, *adjectives, parts.noun, *parts.behind, size, parts.after)

    def _parts(self) -> _Parts:
        """The title cut around its noun, or behind its first part where it has none."""
        after = self.said[self.head_end :]
        if self.noun is None:
            return _Parts(self.said[: self.head_end], [], "", [], after)
        start = self.noun.start
        adjectives: list[tuple[str, str]] = []
        for match in reversed([match for match in self.matches if match.end <= start]):
            gap = self.said[match.end : start]
            if match.kind not in RANKS or not _JOINT.fullmatch(gap):
                break
            if not gap.strip():
                adjectives.insert(0, (match.kind, self.said[match.start : match.end]))
            elif adjectives and adjectives[0][0] == match.kind:  # "Blue & White" is one
                adjectives[0] = (match.kind, self.said[match.start : start] + adjectives[0][1])
            else:
                break
            start = match.start
        return _Parts(self.said[:start], adjectives, self.said[self.noun.start : self.head_end], [], after)

    def _place(self, kind: str, text: str, parts: _Parts) -> None:
        if self._goes_behind(kind, text, parts):
            small = {"colour": self.small.colour, "material": self.small.material}.get(kind, "")
            there = re.match(rf"\s*{re.escape(small)}\s+", parts.after) if small else None
            place = len(self.said) - len(parts.after) + there.end() if there else 0
            if (
                any(match.start == place and RANKS.get(match.kind, 0) > RANKS[kind] for match in self.matches)
                and there
            ):
                parts.after = f"{parts.after[: there.end()]}{text} {parts.after[there.end() :]}"  # "in black leather"
            else:
                parts.behind.append(text if self.unspaced else f"{small} {text}".strip())
        elif kind == "pattern" and (
            not parts.noun or self._follows_name(kind, parts)
        ):  # not into the middle of a compound noun
            parts.before = self._joined(parts.before[: self.brand_end], text, parts.before[self.brand_end :])
        else:
            places = (place for place, (other, _) in enumerate(parts.adjectives) if RANKS[other] > RANKS[kind])
            parts.adjectives.insert(next(places, len(parts.adjectives)), (kind, text))

    def _goes_behind(self, kind: str, text: str, parts: _Parts) -> bool:
        """Whether an addition follows the noun: "in Cotton & Wool"."""
        if not parts.noun:
            return kind != "pattern"
        if self.unspaced:
            return False
        if not self.lexicon.adjectives_first or not self.small.colour or (kind == "colour" and self.order == 2):
            return True
        return kind == "material" and (f" {self.small.conjunction} " in text or self._follows_name(kind, parts))

    def _follows_name(self, kind: str, parts: _Parts) -> bool:
        """Whether a word of unknown meaning stands before the noun, and titles do not usually put a `kind` there."""
        last = next((word for word in reversed(self.words) if word.end <= len(parts.before)), None)
        if last is None or (self.lexicon.naming_share("", kind) or 0) >= SELDOM:
            return False
        return not any(match.start <= last.start < match.end for match in self.matches)

    def _place_audience(self, audience: str, parts: _Parts) -> None:
        """Behind the noun as "for Men"; or behind the brand that begins the title; or in front, as "Men's"."""
        group = audience_of(key_of(audience))
        behind = (
            f"{self.small.audience} {self._plural(audience)}".strip()
            if group != "unisex" and not self.unspaced
            else ""
        )
        named, always = (self.lexicon.naming_share("", what, 1) or 0 for what in ("audience", "behind"))
        if behind and (self.order == 1 or not self.lexicon.adjectives_first or always > named / 2):
            parts.behind.insert(0, behind)
        elif 0 < self.brand_end <= len(parts.before):
            parts.before = self._joined(parts.before[: self.brand_end], audience, parts.before[self.brand_end :])
        elif behind and "'" not in audience:
            parts.behind.insert(0, behind)
        else:
            parts.before = self._joined(audience, parts.before)

    # The same in other words

    def specialised(self) -> str:
        """The title with its one colour or material said more exactly: "Blue" where the attribute is "Navy Blue"."""
        for kind in ("colour", "material"):
            said = [match for match in self.matches if match.kind == kind]
            values = [e.value for e in self.entities if e.kind == kind and e.source == "attributes"]
            if not len(said) == len(values) == 1:
                continue
            place, size, more = said[0].start, len(said[0].key), values[0].split()
            before = [word.key for word in self.words if word.end <= place]
            if len(more) > size and key_of(" ".join(more[-size:])) == said[0].key:
                added = " ".join(more[:-size])
                if key_of(added)[-1:] != tuple(before[-1:]):
                    return self._joined(self.said[:place], self._cased(added, kind), self.said[place:])
        return ""

    def reordered(self) -> str:
        """The title with its audience or its colour behind the noun, where that is a matter of taste."""
        free = self.noun and self.noun.end == self.head_end and self.lexicon.adjectives_first and not self.unspaced
        if not free or not self._is_english() or self.order == 0:
            return ""
        kind = "audience" if self.order == 1 else "colour"
        said = [match for match in self.matches if match.kind == kind]
        if len(said) != 1 or said[0].end > self.noun.start:
            return ""
        start, end = said[0].start, said[0].end
        left, right = self.said[:start].rstrip(), self.said[end : self.head_end].lstrip()
        if left.endswith(("&", "/", "-", " and")) or not self.said[end].isspace() or right.startswith("&"):
            return ""
        group = audience_of(said[0].key)
        several = self.said[start:end].lower() in (_PLURAL.get(group, "").lower(), _POSSESSIVE.get(group, "").lower())
        if kind == "audience" and several and start <= self.brand_end + 1:  # a "Boy" may be part of a name
            behind = f"for {self._plural(self.said[start:end])}"
        elif kind == "colour" and self.said[end : self.noun.start] == " " and len(self.noun.key) == 1:
            behind = f"in {self.said[start:end]}"
        else:
            return ""
        return self._joined(left, right, behind, self.said[self.head_end :])

    def composed(self) -> str:
        """A title for a product that has none."""
        additions = self.additions()
        if not (noun := additions.get("noun")):
            return ""
        order = ("brand", "audience", "pattern", "colour", "material", "use")
        return self._joined(*(additions.get(kind, "") for kind in order), noun, additions.get("size", ""))

    # Letters

    def _is_english(self) -> bool:
        return self.small.audience == "for"

    def _plural(self, audience: str) -> str:
        """The word behind "for": "Men" of "Men's" or "Man"."""
        group = audience_of(key_of(audience))
        if not self._is_english() or group not in _PLURAL:
            return audience
        plural = _PLURAL[group]
        return plural.upper() if audience.isupper() else plural.lower() if audience.islower() else plural

    def _cased(self, value: str, kind: str) -> str:
        """A value in the title's own use of capitals."""
        if kind == "brand" or not self.said:
            return value
        if self.said.isupper() and len(self.words) > 1:
            return value.upper()
        if self._is_sentence():
            german_noun = self.small.audience == "für" and kind in ("audience", "material", "noun")
            return value.lower() if value.istitle() and not german_noun else value
        return " ".join(word[0].upper() + word[1:] for word in value.split()) if value.islower() else value

    def _is_sentence(self) -> bool:
        """Whether the title is written like a sentence, "Red running shoes", rather than "Red Running Shoes"."""
        rest = [self.said[word.start : word.end] for word in self.words[1:] if word.key not in COMMON_WORDS]
        rest = [word for word in rest if len(word) > 2]
        return 2 * sum(map(str.islower, rest)) >= max(1, len(rest))

    def _begun(self, *parts: str) -> str:
        """The parts joined, with a capital letter for what now begins a title that is written like a sentence."""
        title = self._joined(*parts)
        first = self.matches[0] if self.matches else None
        if not self.said[0].isupper() or not self._is_sentence() or title.startswith(self.said.split()[0]):
            return title
        if first and first.start == 0 and first.kind in RANKS:
            word = self.said.split()[0]
            title = title.replace(word, word.lower(), 1)
        return title[0].upper() + title[1:]

    def _joined(self, *parts: str) -> str:
        return ("" if self.unspaced else " ").join(part.strip() for part in parts if part.strip())
