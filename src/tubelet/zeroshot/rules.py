"""A statement about one thing, read without a model: how it is described, what it does, which noun it is.

    read_statement("the tall man in red picks up a cup")
    # description "the tall man in red", predicate "picks up a cup", subject "the man", noun "man"

One pass from left to right over word classes (the word lists of `tubelet.unistg.lexicon`): the description goes on
until a verb with a tense, "is ...ing", or a participle that no such verb follows ("a cat kicking a ball", but "the
woman holding flowers smiles" smiles). "is" before a place or a colour belongs to the description. English only: what
it does not know is taken for a noun, so that the description is then the whole text. Never raises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tubelet.unistg.lexicon import Lexicon, lexicon
from tubelet.zeroshot.words import MARKS, classes_of, is_plural, plain, tidy

_BE = frozenset(["is", "are", "was", "were", "be", "been", "being", "isn't", "aren't"])
_TIMES = frozenset(["after", "when", "while", "as", "before", "once", "then"])
_HAVE = frozenset(["has", "have", "had"])
_WEARS = frozenset(["wears", "wear", "wore"])
_PLACED = frozenset(["next", "close", "left", "right", "far", "opposite", "near", "nearest", "adjacent"])
_SIDES = _PLACED | {"front", "back", "middle", "center", "centre", "top", "bottom", "side", "other", "rear"}
# past forms that are no participles; participles that say how something is, not what it does
_PAST = frozenset([
    "ate", "began", "bit", "blew", "broke", "came", "chose", "did", "drank", "drew", "drove",
    "fell", "flew", "forgot", "froze", "gave", "grew", "hid", "knew", "ran", "rang", "rode", "rose",
    "sang", "sank", "sat", "saw", "shook", "shrank", "spoke", "sprang", "stole", "swam", "swore",
    "threw", "tore", "took", "went", "woke", "wore", "wrote",
])  # fmt: skip
_STATES = frozenset([
    "wearing", "standing", "sitting", "lying", "laying", "kneeling", "facing", "dressed", "seated",
    "covered", "surrounded", "placed", "located", "parked", "filled", "named", "called", "made",
    "attached", "next",
])  # fmt: skip
_POSTURES = frozenset(["lies", "sits", "stands", "lays", "kneels", "lie", "sit", "stand"])
_NOUNS = frozenset("NBSJGEM")
_OBJECTS = frozenset("ADWIMNBSJ")
_ARTICLES = frozenset(["a", "an", "the", "his", "her", "their"])


@dataclass(frozen=True, slots=True)
class Statement:
    """description, predicate: texts, None where there is none. subject: article and noun. noun: lower case, or None."""

    description: str | None
    predicate: str | None
    subject: str | None
    noun: str | None

    @property
    def action(self) -> str | None:
        """The bare subject and what it does: "the man picks up a cup"."""
        return None if self.predicate is None else " ".join(filter(None, (self.subject, self.predicate)))


def read_statement(text: str) -> Statement:
    """What a statement (or a noun phrase) says about its subject."""
    words = tidy(text).split()
    if not words:
        return Statement(None, None, None, None)
    if plain(words[0]) in _TIMES and len(words) > 1:
        words = words[1:]  # "after the man pours a glass, he drinks"
    lead = next((k + 1 for k, word in enumerate(words[:-1]) if word.endswith(",")), 0)
    if lead and classes_of([plain(words[0])])[0] in "GE" and classes_of([plain(words[lead])])[0] in "ADW":
        found = _Reader(words[lead:]).read()  # "sitting at the table, the woman stands up"
        how = " ".join([words[0].lower(), *words[1:lead]]).rstrip(",;: ")
        return replace(found, description=f"{found.description} {how}" if found.description else how)
    return _Reader(words).read()


class _Reader:
    """One pass over the words. want: is a noun expected (2 surely, after an article; 1 perhaps, after "in"; 0 no)?"""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.plain = [plain(word) for word in words]
        self.tags = classes_of(self.plain)
        self.known: Lexicon = lexicon()
        self.want, self.head, self.closed, self.joined = 1, -1, False, False
        self.candidate = -1  # a participle that may be the predicate
        self.crossed = False  # was there "and" or a comma behind it?
        self.inside = False  # a clause with a subject of its own
        self.kept: list[tuple[int, str]] = []

    def read(self) -> Statement:
        start = self._predicate()
        return self._made(len(self.words) if start is None else start, start)

    def _made(self, end: int, start: int | None) -> Statement:
        kept = [word for k, word in self.kept if k < end]
        while kept and plain(kept[-1]) in ("and", "then", "while", "", "also", "or"):
            kept.pop()
        if kept:
            kept[-1] = kept[-1].rstrip(",;: ")
        noun = self.plain[self.head] if self.head >= 0 else None
        if noun is None and start == 0:
            subject: str | None = "someone"
        elif noun is None or self.joined:
            subject = " ".join(kept) or None
        elif self.head == 0:
            known = self.plain[0] in self.known.classes or self.plain[0] in self.known.people
            named = self.tags[0] in "IW" or not known  # "something", "Anna"
            subject = self.words[0].strip(MARKS) if named else f"the {self.plain[0]}"
        elif (
            self.words[self.head][:1].isupper()
            and self.tags[0] not in "ADM"
            and noun not in self.known.classes
        ):
            subject = " ".join(self.words[: self.head + 1])  # "Anna Smith"
        else:
            subject = f"{self._article()} {self.words[self.head].strip(MARKS)}"
        description = " ".join(kept) or None
        if start is None:
            return Statement(description, None, subject, noun)
        begin = start + (self.tags[start] == "R")
        return Statement(description, " ".join(self.words[begin:]) or None, subject, noun)

    def _article(self) -> str:
        """What stands before the bare noun: "the", "a", "the two"."""
        first = self.plain[0]
        if first in ("a", "an"):
            return "an" if self.plain[self.head][:1] in tuple("aeiou") else "a"
        if self.tags[0] == "M":
            return f"the {first}"
        if self.head > 1 and first in _ARTICLES and self.tags[1] == "M" and self.plain[1] != "one":
            return f"{first} {self.plain[1]}"
        return first if first in _ARTICLES else "the"

    # --- where the predicate begins --------------------------------------------------------------------

    def _predicate(self) -> int | None:
        """Index of the predicate's first word; None without one. Keeps the words of the description on the way."""
        k, n = 0, len(self.words)
        if self.tags[0] in "VS" and self._tag(1) in "ADW":
            return 0  # "takes a knife"
        while k < n:
            tag = self.tags[k]
            if self.head >= 0 and self.plain[k] in _BE:
                if self._after(k) in "GEBV" and self.tags[k - 1] != "R":
                    return self._chosen(k)
                k = self._is_how(k)
            elif self.head >= 0 and tag == "X":
                if self.plain[k] not in _HAVE or not self._worn_next(k):
                    return self._chosen(k)
                self._keep(k, "with")
                self.want = 1
            elif self.head >= 0 and self.plain[k] in _WEARS and self._tag(k + 1) != "I":
                self._keep(k, "wearing")
                self.want = 1
            elif self.head >= 0 and tag == "R" and k:
                if self._next(k) in _BE or self._next(k) in _WEARS or k + 1 == n:
                    self.closed = True  # "who" is left out: what follows decides
                elif self._tag(k + 1) in "VSBXGE":
                    return k if self.candidate < 0 else self._chosen(k)
                else:
                    self._keep(k)
                    self.closed, self.inside = True, self._tag(k + 1) in "ADWMI"
            elif self._is_verb(k):
                if self.inside:  # "the person that the dog bites"
                    self._keep(k)
                    self.inside, self.want = False, 0
                elif self.plain[k] in _POSTURES and self.candidate < 0:
                    self._propose(k)
                else:
                    return self._chosen(k)
            else:
                self._noun_phrase(k)
            k += 1
        if self.candidate >= 0 and self.plain[self.candidate] not in _STATES:
            return self.candidate
        return None

    def _chosen(self, finite: int) -> int:
        """The verb with a tense, or the participle before it where both belong to one list ("running and jumps")."""
        before = self.tags[finite - 1]
        listed = before in "C," or self.words[finite - 1].endswith(",") or self.plain[finite - 1] == "then"
        if self.candidate < 0 or (self.plain[self.candidate] in _STATES and self.tags[self.candidate] == "G"):
            return finite
        participle = self.tags[self.candidate] == "G"
        return self.candidate if listed or (self.crossed and not participle) else finite

    def _is_verb(self, k: int) -> bool:
        """Is this a verb with a tense, with the subject before it?"""
        tag, word = self.tags[k], self.plain[k]
        if self.head < 0 or tag not in "VSBNEJ":
            return False
        after, before = self._tag(k + 1), self.tags[k - 1]
        described = before == "J" and self.want < 2  # "in red", "white and brown"
        if tag == "J":
            return word == "left" and self.want == 0 and after in "AD"
        if tag == "E":
            doing = self.candidate >= 0 and self.tags[self.candidate] == "G" and word not in _STATES
            past = self.inside or word in _PAST or after in "ADW" or (doing and self._next(k) != "by")
            return (self.want == 0 and past) or (word in _PAST and before == "G")
        if tag == "V":
            if before == "G":
                return word.endswith("s")
            return self.want == 0 or described or before in "CQ" or (before == "J" and not self._noun_next(k))
        if tag == "S":
            if word in self.known.worn and self.want:
                return False
            if before == "G":
                return after == "Q"  # "the man squatting looks up"
            placed = before == "J" and (described or self.plain[k - 1] in _SIDES or self.candidate >= 0)
            first = (self.want == 0 and after not in "VX") or before == "Q"
            return first or placed or (before == "C" and self.closed)
        if tag == "B":
            if self.want == 2 or (self.want == 1 and not described):
                return False
            return (
                (is_plural(self.plain[k - 1]) or described or self.joined)
                and (after in "ADWITPQ.,C" or self._noun_next(k))
                and not self._verb_next(k)
            )
        unknown = word not in self.known.classes and word.endswith("s") and not word.endswith(("ss", "'s"))
        return bool(
            unknown
            and (self.want == 0 or described)
            and word not in self.known.people
            and word.isalpha()
            and len(word) > 3
            and (after in "ADMPTQWI" or (after == "." and self.plain[k - 1] in self.known.people))
        )

    # --- the description -------------------------------------------------------------------------------

    def _noun_phrase(self, k: int) -> None:
        """Keep a word of the description and say what may follow it."""
        tag, word = self.tags[k], self.plain[k]
        self._keep(k)
        if tag in "AD" or (tag == "R" and k == 0):
            self.closed = self.closed or (self.head >= 0 and not self.joined)
            self.want = 2
        elif tag == "M":
            if self._tag(k + 1) in _NOUNS:
                self.want = 2
            else:
                self._noun(k)
        elif tag == "J":
            if self.want and (self._tag(k + 1) not in _NOUNS or self._alone(k)):
                self._noun(k)
        elif tag in "GE" and self.want == 2:
            if self._tag(k + 1) not in _NOUNS:
                self._noun(k)
        elif tag == "E" and self.want == 1 and self.head < 0:
            pass  # "bearded man"
        elif tag in "GE" and self.head >= 0:
            self.closed = True
            self._propose(k, kept=True)
            self.want = 1
        elif tag in "POT":
            self.closed = self.closed or self.head >= 0
            self.want = 1
        elif tag == "C":
            self.crossed = True
            if self.head >= 0 and not self.closed and self._tag(k + 1) in "ADN":
                self.joined = True
            self.want = 1
        elif tag in "Q,":
            self.closed = self.closed or self.head >= 0
        elif tag in "NBSVWIG" and (word not in ("there", "here")):
            self._noun(k)
        if self.words[k].endswith(","):
            self.crossed = self.closed = True

    def _noun(self, k: int) -> None:
        if not self.closed and not (self.joined and self.head >= 0):
            self.head = k if self.tags[k] not in "JM" or self.head < 0 else self.head
        self.want = 0

    def _propose(self, k: int, kept: bool = False) -> None:
        """A participle or a posture: the predicate, if no verb with a tense follows."""
        if not kept:
            self._keep(k)
            self.closed, self.want = True, 1
        if self.candidate < 0 or self.plain[self.candidate] in _STATES:
            self.candidate, self.crossed = k, False

    def _is_how(self, k: int) -> int:
        """ "is" before a place is left out ("a dog behind a man"), before how something is it becomes "that is"."""
        after, word = self._after(k), self._next(k)
        if not (after in "PQTOGE" or word in _PLACED):
            self.kept.append((k, "that"))
            self._keep(k)
        self.closed, self.want = True, 1
        return k

    def _alone(self, k: int) -> bool:
        """Is this colour or side a noun itself ("the man in red turns", "the one on the left sits")?"""
        after, word = self._tag(k + 1), self._next(k)
        if self.head < 0 or (after == "S" and word in self.known.worn):
            return False
        side = self.plain[k] in _SIDES
        if after == "E" or after == "G":
            return self.want == 1 or side
        return (self.want == 1 or side) and (after == "S" or (after == "B" and self._tag(k + 2) in "ADWTPQ"))

    # --- looking around --------------------------------------------------------------------------------

    def _keep(self, k: int, instead: str | None = None) -> None:
        self.kept.append((k, self.words[k] if instead is None else instead))

    def _tag(self, k: int) -> str:
        return self.tags[k] if k < len(self.tags) else "."

    def _next(self, k: int) -> str:
        return self.plain[k + 1] if k + 1 < len(self.plain) else ""

    def _after(self, k: int) -> str:
        """The class behind, adverbs skipped unless nothing else follows."""
        first = self._tag(k + 1)
        return self._tag(k + 2) if first == "Q" and self._tag(k + 2) in "GE" else first

    def _noun_next(self, k: int) -> bool:
        return self._tag(k + 1) in "NBS" and not self._verb_next(k)

    def _verb_next(self, k: int) -> bool:
        return self._tag(k + 1) in "VX"

    def _worn_next(self, k: int) -> bool:
        """ "has a red hat", "has long hair": described by it."""
        for j in range(k + 1, len(self.words)):
            if self.plain[j] in self.known.worn:
                return True
            if self.tags[j] not in "ADMJN":
                return False
        return False
