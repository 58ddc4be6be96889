"""The synthetic collection: documents, queries, grades, clicks from (seed, index).

Nothing is stored: every call computes its record from the seed and an index with
integer hashing alone, so the n-th row of a click log costs the same for every n, and
every machine and every version of every library makes the same world.

A *topic* has four words. Documents use the first three, queries the last three, so that
the fourth is never found by matching words, and has to be learned from clicks.
*Aspects* and *kinds* have such words too. A document is about one (topic, aspect,
kind), touches on a second aspect, and names one other topic and aspect that it is *not*
about, after the word "unlike": a distractor that shares the words of queries without
their meaning.

Grades, for a query (topic, aspect, kind) and a document:

    4  topic, aspect and kind are the document's own
    3  topic and aspect are
    2  topic is, and the aspect is the one that the document touches on
    1  topic is
    0  otherwise
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ranker import config
from ranker.data.records import Click, Document, Query

NUM_KINDS = 4
RESULTS = 10  # documents a result page of the logged search engine shows
SESSION_QUERIES = 0.25  # distinct queries of the log, as a share of its rows

# Chance that a user looks at a rank, and that a document looked at is clicked, by grade
# (a position-based click model: Craswell et al., 2008).
_EXAMINATION = tuple(1 / (rank + 1) ** 0.7 for rank in range(RESULTS))
_ATTRACTION = (0.04, 0.15, 0.35, 0.7, 0.9)

_DOCUMENT, _QUERY, _CANDIDATES, _SESSION, _LOG_QUERY = range(5)  # random streams
_WORDS = {"topic": 0, "aspect": 1, "kind": 2, "filler": 3}
_FORMS = 4
_NUM_FILLERS = 120
_SYLLABLES = [c + v for c in "bdfghjklmnprstvz" for v in "aeiou"]
_MASK = (1 << 64) - 1
_CACHED = 1 << 16  # documents whose content is remembered


def _mix(x: int) -> int:
    """Scrambles 64 bits (the finaliser of SplitMix64; Steele et al., 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class _Draw:
    """A stream of random numbers named by integers."""

    def __init__(self, *names: int):
        self.state = 0
        for name in names:
            self.state = _mix(self.state ^ (int(name) & _MASK))

    def bits(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        return _mix(self.state)

    def below(self, n: int) -> int:
        return self.bits() % n

    def unit(self) -> float:
        return (self.bits() >> 11) / (1 << 53)

    def weighted(self, weights: list[float]) -> int:
        rest = self.unit() * sum(weights)
        for index, weight in enumerate(weights):
            rest -= weight
            if rest < 0:
                return index
        return len(weights) - 1


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a query asks for, or what a document is about."""

    topic: int
    aspect: int
    kind: int


@dataclass(frozen=True, slots=True)
class DocumentMeaning:
    """What a document says: its meaning, and what it mentions beside it."""

    about: Meaning
    touches: int  # a second aspect of the topic
    unlike: Meaning  # named, but not what the document is about


def grade(query: Meaning, document: DocumentMeaning) -> int:
    """Relevance of a document to a query, 0-4, by the rule of the module."""
    about = document.about
    if query.topic != about.topic:
        return 0
    if query.aspect == about.aspect:
        return 4 if query.kind == about.kind else 3
    return 2 if query.aspect == document.touches else 1


class SearchWorld:
    """Records of the synthetic collection by index; see the module's docstring."""

    def __init__(self, settings: config.World):
        self.settings = settings
        self.num_documents = settings.num_topics * settings.documents_per_topic
        # A document is looked at for many queries and clicks.
        self.content = lru_cache(maxsize=_CACHED)(self._content)

    # --- words ---

    def word(self, family: str, index: int, form: int = 0) -> str:
        """A made-up word, the same for ever: three syllables, more if these run out."""
        number = (index * _FORMS + form) * len(_WORDS) + _WORDS[family]
        base = len(_SYLLABLES)
        length = 3
        while number >= base**length:
            number -= base**length
            length += 1
        size = base**length
        # A multiplier without a common factor permutes the words of one length, so that
        # neighbours look unrelated and no two are the same.
        number = (number * 278_899 + _mix(self.settings.seed) % size) % size
        syllables = []
        for _ in range(length):
            number, index = divmod(number, base)
            syllables.append(_SYLLABLES[index])
        return "".join(syllables)

    # --- documents ---

    def _content(self, row: int) -> DocumentMeaning:
        """What document `row` says, in 0..num_documents - 1."""
        topic, slot = divmod(row, self.settings.documents_per_topic)
        draw = _Draw(self.settings.seed, _DOCUMENT, row)
        # Slots walk through the aspects, so that a topic covers as many as it can.
        aspect = (slot + draw.below(2)) % self.settings.num_aspects
        kind = draw.below(NUM_KINDS)
        touches = (aspect + 1 + draw.below(self.settings.num_aspects)) % (
            self.settings.num_aspects
        )
        unlike = Meaning(
            self._unlike_topic(topic, slot), draw.below(self.settings.num_aspects), kind
        )
        return DocumentMeaning(Meaning(topic, aspect, kind), touches, unlike)

    def _unlike_topic(self, topic: int, slot: int) -> int:
        """Topic that documents in this slot of `topic` name without being about it."""
        return (topic + 1 + slot) % self.settings.num_topics

    def document(self, row: int) -> Document:
        """Document `row`, with title and summary text."""
        content = self.content(row)
        about, unlike = content.about, content.unlike
        draw = _Draw(self.settings.seed, _DOCUMENT, row, 1)

        def say(family: str, index: int) -> str:
            return self.word(family, index, draw.below(3))

        def fill() -> str:
            return self.word("filler", int(draw.unit() ** 2 * _NUM_FILLERS))

        title = [say("topic", about.topic), say("aspect", about.aspect)]
        if draw.below(2):
            title.reverse()
        title.append(say("kind", about.kind))
        sentences = [
            [fill(), say("topic", about.topic), fill(), say("aspect", about.aspect)],
            ["also", say("aspect", content.touches), fill()],
            # The words of the comparison are the ones that queries use.
            [
                "unlike",
                self.word("topic", unlike.topic, 1 + draw.below(3)),
                self.word("aspect", unlike.aspect, 1 + draw.below(2)),
            ],
        ]
        if draw.below(2):
            sentences[0], sentences[1] = sentences[1], sentences[0]
        text = ". ".join(" ".join(words) for words in sentences) + "."
        return Document(f"d{row}", " ".join(title), text)

    # --- queries ---

    def _meaning(self, draw: _Draw) -> Meaning:
        # Some topics are asked for more than others.
        topic = int(draw.unit() ** 1.5 * self.settings.num_topics)
        return Meaning(
            topic, draw.below(self.settings.num_aspects), draw.below(NUM_KINDS)
        )

    def _text(self, meaning: Meaning, draw: _Draw) -> str:
        words = [
            self.word("topic", meaning.topic, 1 + draw.below(3)),
            self.word("aspect", meaning.aspect, 1 + draw.below(3)),
            self.word("kind", meaning.kind, 1 + draw.below(3)),
        ]
        turn = draw.below(3)
        return " ".join(words[turn:] + words[:turn])

    def splits(self) -> dict[str, range]:
        """Query indices of each split: labelled train, unlabelled, dev and test."""
        settings, start, splits = self.settings, 0, {}
        for name, size in (
            ("train", settings.labelled_queries),
            ("unlabelled", settings.unlabelled_queries),
            ("dev", settings.dev_queries),
            ("test", settings.test_queries),
        ):
            splits[name] = range(start, start + size)
            start += size
        return splits

    def meaning(self, index: int) -> Meaning:
        """What query `index` asks for."""
        return self._meaning(_Draw(self.settings.seed, _QUERY, index))

    def query(self, index: int) -> Query:
        """Query `index` in the words of a user."""
        draw = _Draw(self.settings.seed, _QUERY, index, 1)
        return Query(f"q{index}", self._text(self.meaning(index), draw))

    def candidates(self, index: int) -> list[int]:
        """Document rows that a first stage finds for query `index`, in its order.

        A third is about the topic, a third names the topic only to say that it is about
        another one, and the rest has the aspect or nothing in common with the query.
        """
        draw = _Draw(self.settings.seed, _CANDIDATES, index)
        return self._retrieve(self.meaning(index), draw, self.settings.candidates)

    def _retrieve(self, meaning: Meaning, draw: _Draw, count: int) -> list[int]:
        per_topic = self.settings.documents_per_topic
        num_topics = self.settings.num_topics
        rows: dict[int, None] = {}  # an ordered set

        def add(row: int) -> None:
            if len(rows) < count:
                rows[row] = None

        own = range(meaning.topic * per_topic, (meaning.topic + 1) * per_topic)
        best = [row for row in own if grade(meaning, self.content(row)) >= 2]
        for _ in range(max(1, count // 5)):
            if best:
                add(best.pop(draw.below(len(best))))
        for _ in range(max(1, count // 6)):
            add(own[draw.below(per_topic)])
        for _ in range(count // 3):  # lexical distractors
            slot = draw.below(per_topic)
            topic = (meaning.topic - 1 - slot) % num_topics
            if topic != meaning.topic:
                add(topic * per_topic + slot)
        while len(rows) < min(count, self.num_documents):
            add(draw.below(self.num_documents))
        order = list(rows)
        for last in range(len(order) - 1, 0, -1):  # shuffle
            other = draw.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    # --- clicks ---

    def click(self, index: int) -> Click:
        """Row `index` of the click log: one click of one user on one result page.

        The logged engine ranks by grade with a lot of noise; the user clicks a result
        with a chance proportional to its examination (by rank) times its attraction (by
        grade), and stays the longer the better it is: log-normal dwell times.
        """
        settings = self.settings
        session = _Draw(settings.seed, _SESSION, index)
        num_queries = max(1, int(settings.clicks * SESSION_QUERIES))
        asked = int(session.unit() ** 1.5 * num_queries)  # popular queries come again
        draw = _Draw(settings.seed, _LOG_QUERY, asked)
        meaning = self._meaning(draw)
        text = self._text(meaning, draw)
        shown = self._retrieve(meaning, session, RESULTS)
        grades = {row: grade(meaning, self.content(row)) for row in shown}
        shown.sort(key=lambda row: -grades[row] - 6 * session.unit())
        rank = session.weighted(
            [
                look * _ATTRACTION[grades[row]]
                for look, row in zip(_EXAMINATION, shown, strict=False)
            ]
        )
        row = shown[rank]
        noise = sum(session.unit() for _ in range(12)) - 6  # close to a normal deviate
        dwell = 2.718281828459045 ** (1.6 + 0.55 * grades[row] + 0.6 * noise)
        document = self.document(row)
        return Click(
            query=text,
            title=document.title,
            summary=document.text,
            document_id=document.id,
            position=rank + 1,
            dwell=round(dwell, 1),
        )

    def click_log(self) -> Iterator[Click]:
        """Every row of the click log, in order."""
        return map(self.click, range(self.settings.clicks))
