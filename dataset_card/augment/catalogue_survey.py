"""One reading of a catalogue from which its lexicon is learnt, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .entities import (
    KINDS,
    MIN_PRODUCTS,
    TITLE_END,
    Lexicon,
    attributes_of,
    nouns_of_leaf,
    path_of,
    split_values,
    text_of,
)
from .words import COMMON_WORDS, Key, Token, key_of, kind_of_attribute, seed_values, tokens

SAMPLE = 50_000  # titles that are kept to see how titles are written
MOST_VALUES = 200_000  # of one kind that are counted at a time
LEAST_TITLES = 3  # a brand or noun that only titles name
COMMON_PRODUCTS, COMMON_SHARE = 5, 0.0005  # a capitalised word in fewer may be a brand that is not known as one
LEAST_COMPANY = 3  # with so many different words beside it: the name of one product in three colours has fewer


NAMED_ONE_BY_ONE = ("pattern", "use", "audience", "noun")
_FOR = re.compile(r"\b(?:for|für|pour|para|voor|da)\s+$", re.IGNORECASE)


class Title(NamedTuple):
    """A title that is kept, cut into words."""

    text: str
    words: list[Token]
    leaf: str


class Survey:
    """Counts what a catalogue's products name; `lexicon()` says what follows from it.

    Attributes and categories of all products count. Of titles an even sample of at most `SAMPLE` is kept.
    """

    def __init__(self) -> None:
        self.values: dict[str, dict[Key, Counter[str]]] = {kind: {} for kind in KINDS}
        self.sample: list[tuple[str, str, str]] = []
        self.products = 0
        self.random = np.random.default_rng(0)

    def add(self, product: Mapping[str, Any]) -> None:
        """Count one product.

        Args:
            product: a row in `PRODUCT_FEATURES`; columns may be missing or null.
        """
        for name, value in attributes_of(product):
            if kind := kind_of_attribute(name):
                for part in split_values(value):
                    self._count(kind, part)
        path = path_of(product)
        leaf = path[-1] if path else ""
        for noun in nouns_of_leaf(leaf):
            self._count("noun", noun)
        kept = text_of(product.get("title"))[:300], leaf, text_of(product.get("description"))[:600]
        place = self.products if self.products < SAMPLE else int(self.random.integers(0, self.products + 1))
        if place < len(self.sample):
            self.sample[place] = kept
        elif place < SAMPLE:
            self.sample.append(kept)
        self.products += 1

    def lexicon(self) -> Lexicon:
        """What the products counted so far teach."""
        values = {
            kind: {
                found.most_common(1)[0][0]: found.total() for found in counts.values() if found.total() >= MIN_PRODUCTS
            }
            for kind, counts in self.values.items()
        }
        titles = [Title(text, tokens(text), leaf) for text, leaf, _ in self.sample if text.strip()]
        lower_case, common = self._vocabulary()
        for learn in (_tail_nouns, _brands, _compound_nouns):
            lexicon = Lexicon(values)
            if learn is not _brands or 2 * self._with("brand") < self.products:
                for kind, value, count in learn(titles, lexicon, lower_case):
                    values[kind][value] = values[kind].get(value, 0) + count
        values = _as_titles_write(titles, Lexicon(values))
        lexicon = Lexicon(values)
        return Lexicon(values, _habits(titles, lexicon), common, _adjectives_first(titles, lexicon))

    def _count(self, kind: str, value: str) -> None:
        key = key_of(value)
        if not key:
            return
        counts = self.values[kind]
        counts.setdefault(key, Counter())[value] += 1
        if len(counts) > MOST_VALUES:  # rare values go, as they would in the end
            for rare in [key for key, found in counts.items() if found.total() < MIN_PRODUCTS]:
                del counts[rare]

    def _with(self, kind: str) -> int:
        return sum(found.total() for found in self.values[kind].values())

    def _vocabulary(self) -> tuple[frozenset[str], list[str]]:
        """Words that are mostly no names, being written in lower case; and those too usual to be an unknown brand."""
        lower: Counter[str] = Counter()
        seen: Counter[str] = Counter()
        for title, _, description in self.sample:
            for text in (title, description):
                found = tokens(text)
                seen.update({word.key for word in found})
                lower.update({word.key for word in found if text[word.start].islower()})
        often = {word for word, count in lower.items() if count >= MIN_PRODUCTS and 5 * count >= seen[word]}
        least = max(COMMON_PRODUCTS, COMMON_SHARE * len(self.sample))
        return frozenset(often), [word for word in seen if lower[word] >= MIN_PRODUCTS or seen[word] >= least]


def _tail_nouns(titles: list[Title], lexicon: Lexicon, _: frozenset[str]) -> Iterable[tuple[str, str, int]]:
    """Words that titles end with, before colour, size and what follows a comma, a dash or "with": "Jersey", "Tee"."""
    at_end: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    surfaces: dict[str, Counter[str]] = defaultdict(Counter)
    company: dict[str, set[str]] = defaultdict(set)
    with_noun = head_last = 0
    for title in titles:
        cut = TITLE_END.search(title.text)
        matches = lexicon.find(title.text)
        inside = {word.start for word in title.words if any(m.start < word.start < m.end for m in matches)}
        anywhere.update({word.key for word in title.words if word.start not in inside})
        words = [word for word in title.words if not cut or word.end <= cut.start()]
        trailing = {
            place for m in matches if m.kind in ("colour", "size", "audience") for place in range(m.start, m.end)
        }
        while words and (words[-1].start in trailing or words[-1].key[0].isdigit()):
            words.pop()
        last = words[-1] if len(words) > 1 else None
        if last and last.start not in inside:
            at_end[last.key] += 1
            surfaces[last.key][title.text[last.start : last.end]] += 1
            if len(company[last.key]) < LEAST_COMPANY:
                company[last.key].add(words[0].key)
            nouns = [match for match in matches if match.kind == "noun"]
            with_noun += bool(nouns)
            head_last += any(noun.end == last.end for noun in nouns)
    if 2 * head_last <= with_noun:  # titles of this catalogue do not end with the noun, or none is known
        return
    for word, count in at_end.items():
        often = count >= LEAST_TITLES and 2 * count >= anywhere[word] and len(company[word]) >= LEAST_COMPANY
        # "Jersey" is a cloth and a shirt: the general word gives way to what this catalogue ends its titles with.
        free = lexicon.kind((word,)) in (None, "material") and not lexicon.count((word,))
        if often and len(word) > 2 and free and word not in COMMON_WORDS:
            yield "noun", surfaces[word].most_common(1)[0][0], count


def _brands(titles: list[Title], lexicon: Lexicon, lower_case: frozenset[str]) -> Iterable[tuple[str, str, int]]:
    """What titles begin with before audience, colour, noun: "United Colors of Benetton" in many different titles."""
    count: Counter[Key] = Counter()
    whole: Counter[Key] = Counter()
    longer: dict[Key, Counter[str]] = defaultdict(Counter)
    rest: dict[Key, set[Key]] = defaultdict(set)
    surfaces: dict[Key, Counter[str]] = defaultdict(Counter)
    for title in titles:
        matches = {m.start: m for m in lexicon.find(title.text)}
        of_colour = {
            place for m in matches.values() if m.kind in ("colour", "size") for place in range(m.start, m.end)
        }
        cut = TITLE_END.search(title.text)
        lead = []
        for place, word in enumerate(title.words[:5]):
            known = place and word.start in matches and matches[word.start].kind != "material"
            if known or word.key[0].isdigit() or (cut and word.start >= cut.start()):
                break
            lead.append(word)
        if lead and lead[0].start in matches and len(lead) == 1:  # "Black Leather Wallet"
            continue
        keys = tuple(word.key for word in lead)
        for size in range(1, len(keys) + 1):
            key = keys[:size]
            count[key] += 1
            whole[key] += size == len(keys)
            if size < len(keys):
                longer[key][keys[size]] += 1
            if len(rest[key]) < LEAST_COMPANY:
                rest[key].add(tuple(w.key for w in title.words[size:] if w.start not in of_colour))
            surfaces[key][title.text[lead[0].start : lead[size - 1].end]] += 1
    for key, number in count.items():
        different = number >= LEAST_TITLES and len(rest[key]) >= LEAST_COMPANY
        ends = 2 * whole[key] >= number
        branches = number >= 5 and longer[key] and 2 * longer[key].most_common(1)[0][1] < number
        plain = all(word in COMMON_WORDS or word in lower_case for word in key) or key[-1] in COMMON_WORDS
        if different and (ends or branches) and not plain and key[0] not in COMMON_WORDS and len("".join(key)) > 1:
            if lexicon.kind(key) is None:
                yield "brand", surfaces[key].most_common(1)[0][0], number


def _compound_nouns(titles: list[Title], lexicon: Lexicon, _: frozenset[str]) -> Iterable[tuple[str, str, int]]:
    """A noun with the word that usually stands before it: "Polo T-Shirt", "Track Pants"."""
    count: Counter[Key] = Counter()
    before_noun: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    surfaces: dict[Key, Counter[str]] = defaultdict(Counter)
    company: dict[Key, set[str]] = defaultdict(set)
    for title in titles:
        matches = lexicon.find(title.text)
        taken = {place for m in matches for place in range(m.start, m.end)}
        nouns = {m.start: m for m in matches if m.kind == "noun"}
        free = [word for word in title.words if word.start not in taken]
        anywhere.update(word.key for word in free)
        for place, word in enumerate(title.words[:-1]):
            noun = nouns.get(title.words[place + 1].start)
            if noun is None or not place or word.start in taken or not word.key.isalpha():
                continue
            if title.text[word.end : noun.start].strip(" -"):
                continue
            before_noun[word.key] += 1
            key = (word.key, *noun.key)
            count[key] += 1
            surfaces[key][title.text[word.start : noun.end]] += 1
            if len(company[key]) < LEAST_COMPANY:
                company[key].add(title.words[place - 1].key if place > 1 else title.words[0].key)
    for key, number in count.items():
        usual = 2 * before_noun[key[0]] >= anywhere[key[0]] and number >= LEAST_TITLES
        if usual and len(company[key]) >= LEAST_COMPANY and key[0] not in COMMON_WORDS:
            yield "noun", surfaces[key].most_common(1)[0][0], number


def _as_titles_write(titles: list[Title], lexicon: Lexicon) -> dict[str, dict[str, int]]:
    """The lexicon's values in the spelling that titles use most, with the general words that titles use."""
    surfaces: dict[Key, Counter[str]] = defaultdict(Counter)
    for title in titles:
        for match in lexicon.find(title.text):
            surfaces[match.key][title.text[match.start : match.end]] += 1
    values: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    for kind, counts in lexicon.values.items():
        for value, count in counts.items():
            key = key_of(value)
            if lexicon.kind(key) == kind:
                written = surfaces[key].most_common(1)[0][0] if surfaces[key] else value
                values[kind][written] = max(count, values[kind].get(written, 0))
    for key in {key_of(value) for _, value in seed_values()}:
        if not lexicon.count(key) and surfaces[key].total() >= MIN_PRODUCTS:
            values[lexicon.kind(key)][surfaces[key].most_common(1)[0][0]] = surfaces[key].total()
    return values


def _habits(titles: list[Title], lexicon: Lexicon) -> dict[str, Counter[str]]:
    """What the titles of every category name, and of the whole catalogue under ""."""
    habits: dict[str, Counter[str]] = defaultdict(Counter)
    for title in titles:
        matches = lexicon.find(title.text)
        named = {"titles"}.union(m.kind for m in matches)
        named.update(f"{m.kind}:{' '.join(m.key)}" for m in matches if m.kind in NAMED_ONE_BY_ONE)
        if any(m.kind == "audience" and _FOR.search(title.text, 0, m.start) for m in matches):
            named.add("behind")
        for leaf in {"", " ".join(key_of(title.leaf))}:
            habits[leaf].update(named)
    return {leaf: counts for leaf, counts in habits.items() if counts["titles"] >= MIN_PRODUCTS}


def _adjectives_first(titles: list[Title], lexicon: Lexicon) -> bool:
    """Whether colours and the like stand before the noun more often than behind it."""
    balance = 0
    for title in titles:
        matches = lexicon.find(title.text)
        noun = next((m for m in reversed(matches) if m.kind == "noun"), None)
        for match in matches:
            if noun and match.kind in ("colour", "material", "pattern"):
                between = title.text[min(match.end, noun.end) : max(match.start, noun.start)]
                if not TITLE_END.search(between):
                    balance += 1 if match.start < noun.start else -1
    return balance >= 0
