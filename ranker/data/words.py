"""Words of any language, as BM25 and the rules on equal queries count them.

A text is brought to NFKC and folded to lower case. A word is a run of letters, digits
and the marks that combine with them, so that Hindi, Bengali and Thai words stay whole
and an accent is the same letter however it is spelt. Scripts that put no space between
words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, and Korean, whose particles lean on
words) are cut into overlapping pairs of characters, Chinese characters also into single
ones (Lucene's CJKBigramFilter; Kwok, SIGIR 1997). A character is one with its marks.

Unlike Unicode's word boundaries (UAX 29), apostrophes, full stops and underscores end a
word: "film's" and "3.5" are two, which is what a query finds more by.
"""

import functools
import re
import unicodedata
from collections.abc import Callable

from ranker.errors import ConfigError

# English, and short: Lucene's.
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the "
    "their then there these they this to was will with".split()
)
# Scripts whose runs are cut into pairs of characters.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3005\u3007"
_UNSPACED = (
    _HAN + "\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\uac00-\ud7a3"  # Hangul
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai
    "\u0e81-\u0ece"  # Lao
    "\u1780-\u17d3"  # Khmer
    "\u1000-\u104f\ua9e0-\ua9fe\uaa60-\uaa7f"  # Burmese
)
# Joiners, soft hyphens, directions and variation selectors: spelling without meaning.
_SILENT = re.compile(
    "[\u00ad\u034f\u200c\u200d\u200e\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f]"
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_LAST_MARK = 0x1F000  # marks of living scripts lie below


def fold(text: str) -> str:
    r"""The text that queries are compared by: NFKC, lower case, single spaces.

    >>> fold("  Caf\u0065\u0301  \uff2c\uff29\uff33\uff34 ")
    'caf\xe9 list'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
        # Turkish capitals fold to a letter and a dot.
        text = unicodedata.normalize("NFKC", text.replace("i\u0307", "i"))
    return " ".join(text.casefold().split())


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Words; runs of an unspaced script or of others; characters with their marks."""
    marks = _ranges("Mn", "Mc", "Me")
    word = re.compile(rf"[^\W_][^\W_{marks}]*(?:[{marks}]+[^\W_]*)*")
    runs = re.compile(rf"([{_UNSPACED}{marks}]+)|([^{_UNSPACED}]+)")
    character = re.compile(rf"[^{marks}][{marks}]*|[{marks}]+")
    return word, runs, character


def _ranges(*categories: str) -> str:
    """All characters of some Unicode categories, as the inside of a character class."""
    result, first, last = [], None, -2
    for code in range(_LAST_MARK):
        if unicodedata.category(chr(code)) in categories:
            if code != last + 1:
                if first is not None:
                    result.append((first, last))
                first = code
            last = code
    if first is not None:
        result.append((first, last))
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in result)


def split_words(text: str) -> list[str]:
    """The words of a text, stop words among them.

    >>> split_words("The Cats' \u82f9\u679c\u624b")
    ['the', 'cats', '\u82f9', '\u82f9\u679c', '\u679c', '\u679c\u624b', '\u624b']
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    word, runs, character = _patterns()
    result: list[str] = []
    for found in word.findall(_SILENT.sub("", fold(text))):
        if found.isascii():
            result.append(found)
            continue
        for unspaced, spaced in runs.findall(found):
            if spaced:
                result.append(spaced)
            else:
                result += _pairs(character.findall(unspaced))
    return result


def _pairs(characters: list[str]) -> list[str]:
    """Pairs of neighbours, and Chinese characters on their own; one alone stays."""
    if len(characters) == 1:
        return characters
    result = []
    for place, one in enumerate(characters):
        if _is_han(one):
            result.append(one)
        if place + 1 < len(characters):
            result.append(one + characters[place + 1])
    return result


_HAN_ONE = re.compile(f"[{_HAN}]")


def _is_han(character: str) -> bool:
    return _HAN_ONE.match(character) is not None


def make_analyzer(language: str) -> Callable[[str], list[str]]:
    """What cuts texts into words, stemmed where a language is named.

    Args:
      language: as Snowball names it, such as "german"; empty: no stemming.

    Raises:
      ConfigError: for a language that Snowball lacks, or where PyStemmer is missing.
    """
    if not language:
        return split_words
    try:
        import Stemmer
    except ImportError as error:
        raise ConfigError(
            f"data.language is {language!r}, and PyStemmer, which stems, is missing; "
            "pip install PyStemmer, or leave data.language empty"
        ) from error
    if language not in Stemmer.algorithms():
        raise ConfigError(
            f"data.language is {language!r}; it takes "
            f"{', '.join(sorted(Stemmer.algorithms()))}, or nothing"
        )
    stem = Stemmer.Stemmer(language).stemWords

    def analyze(text: str) -> list[str]:
        # Stop words are recognised before they are stemmed.
        found = split_words(text)
        return [
            word if word in STOP_WORDS else stemmed
            for word, stemmed in zip(found, stem(found), strict=True)
        ]

    return analyze
