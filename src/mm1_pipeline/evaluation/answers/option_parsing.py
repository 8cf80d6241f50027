"""Which option, or which of yes and no, an answer in free words names.

Nothing is guessed: an answer that names no option, or several, is wrong. (Some official scripts
draw an option at random instead, which adds chance to the score.) An answer may explain before it
settles, so a conclusion (`The answer is B`) counts for more than what was mentioned on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mm1_pipeline.evaluation.answers.markup import marked_answers, plain_text
from mm1_pipeline.evaluation.formats.base import letter

_NO_LETTER = r"(?![A-Za-z0-9_'+#]|-[A-Za-z]|\.[A-Za-z](?:\.|$))"
"""What must not follow a letter that stands for an option: B12, C++, A's, U.S."""
_LETTER = rf"(?<![A-Za-z0-9_])[(\[{{【]*\s?(?P<letter>[A-Za-z])\s?[)\]}}】]*{_NO_LETTER}"
_REASON = r"(?:because|since|as|which|so|given|due|based|according|for|but)\b"
_CLAUSE_END = re.compile(
    rf"[)\]}}】]*\s*(?:$|\n|[.,;:!?)\]]+(?=\s|$)|[-–—(]|{_REASON}|[^\x00-\x7f])", re.IGNORECASE
)

_HEDGE = r"(?:most\s+)?(?:likely|probably|clearly|simply|therefore|thus|definitely|obviously|only)"
_NOUN = r"(?:option|choice|answer|letter|选项|选)"
_LEAD = (
    rf"\s*(?:{_HEDGE}[\s,]+)?(?:(?:the|just)\s+)?(?:(?:correct|right|best|final)\s+)?(?:{_NOUN}\s*)?"
    r"(?:is\s+)?[:：]?\s*"
)
_ANNOUNCED = re.compile(
    r"\b(?:answers?|ans|option|choice|solution|selection|response|conclusion|correct)\b\.?"
    r"(?:(?:\s+(?!option\b|choice\b)[^.:;?!\n]{0,80}?|[,(][^.:;?!\n]{0,80}?)?"
    r"(?:\s+(?:is|was|be|are|=)\b|:)(?:\s*[:=])?|\s*(?:=+|[-–—]+>?|→)\s|\s*\n\s*)"
    rf"{_LEAD}"
    r"|\bfinal\s+(?:answer|choice)\s+"
    rf"|(?:答案|正确选项|正确答案)[】\]]?(?:应该|应)?(?:是|为|选|:)*{_LEAD}",
    re.IGNORECASE,
)
"""What announces the answer: its letter or text follows."""
_CONCLUDED = re.compile(
    r"\b(?:so|thus|hence|therefore|consequently|in\s+conclusion|it\s+is|it's|(?:must|should|would|"
    r"has\s+to)\s+be|say|choose|chose|pick|select|selected|(?:go|going)\s+(?:with|for)|opt\s+for|"
    r"leav(?:es?|ing)(?:\s+us)?(?:\s+with)?|corresponds?\s+to|match(?:es)?|but|[=-]+>)\s*[,:]?\s*"
    rf"(?:(?:it|that|this)\s+(?:is|must\s+be)\s+)?{_LEAD}"
    r"|(?:故|因此|所以|应该?|我)?选(?:择|项)?(?:是|为|:)?\s*",
    re.IGNORECASE,
)
"""What may conclude: only a letter that ends its clause follows."""
_APPROVED = re.compile(
    r"(?:^|[.,;:!?\n]\s*|\b(?:option|choice|answer|letter|statement|so|thus|hence|therefore|that|and|"
    rf"but|only|think|believe|making|makes?)\s+){_LETTER}(?:\s*\([^()\n]{{0,80}}\))?"
    r"(?:\s*(?:is|was|must be|would be|should be|seems|appears)\s+|\s+)"
    rf"(?:{_HEDGE}\s+)?(?:(?:to be|as)\s+)?(?:the\s+)?(?:one\s+)?(?:(?:only|most|best|more)\s+)?"
    r"(?:(?:possible|likely|plausible|accurate|suitable|appropriate)\s+)?"
    r"(?:correct|right|true|best|answer)\b|(?<![A-Za-z0-9_])(?P<chinese>[A-Z])(?:项|选项)?是?正确",
    re.IGNORECASE,
)
"""An option that is called the right one."""
_DOUBTED = re.compile(
    r"\b(?:not|never|cannot|neither|nor|if|whether|unless|suppose|assuming|rather than|"
    r"instead of)\b|n't\b|不",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"(?:if|unless|otherwise|suppose|assuming)\b", re.IGNORECASE)
_ALSO = re.compile(
    rf"\s*(?:,\s*(?:and|or)?|and/or|/|&|\band\b|\bor\b)\s*(?:also\s+)?(?:{_NOUN}\s+)?{_LETTER}",
    re.IGNORECASE,
)
_ALONE = re.compile(r"\W*([A-Za-z])[^\w+#]*|.*[.!?:→>]\s+\W*([A-Z])[^\w+#]*")
"""A letter that is a line, or its last sentence."""
_HEADING = re.compile(
    r"[(\[【]?(?P<letter>[A-Za-z])(?:[)\]】]+[.:,]?|[.:,])(?=\s|$|[A-Za-z]{2}|\d|[^\x00-\x7f])"
    r"|(?P<capital>[A-Z])(?=\s+(?:[-–—]\s|\(|(?:because|since)\b))"
)
_MENTIONED = re.compile(
    rf"(?<![A-Za-z0-9_])[(\[【](?P<bracketed>[A-Za-z])[)\]】]"
    rf"|\b(?i:{_NOUN})\s+(?P<named>[A-Z](?!\s+[a-z])|[B-HJ-Z]|A(?=\s+(?:is|was|and|or)\b))"
    rf"{_NO_LETTER}",
)
_DENIED = re.compile(
    r"[^.;\n]{0,40}?(?:\bnot\b|n't\b|\b(?:wrong|incorrect|false|eliminated|excluded|ruled out)\b)",
    re.IGNORECASE,
)
_AFTER_A = re.compile(rf"\s+(?:is|was|and|or|would|seems|with|{_REASON})\b", re.IGNORECASE)
"""Words that follow the letter A and never the article."""
_ARTICLE = re.compile(r"(?:an?|the)\s+", re.IGNORECASE)
_WORD = re.compile(r"(?:(?<![\w)])-)?\d+(?:[.,]\d+)+|(?<![\w)])-\d+|[^\W_]+")
_WINDOW = 400
"""Characters around a word that are looked at: longer than a sentence with its option."""
_MAX_MARKED = 3
"""Marked answers that are tried, from the last one."""
_COMMON = re.compile(r"[a-z]|yes|no|not|none|all|both")
"""Words of every text; as options, they count where they begin or end a sentence, and single
letters only as letters."""
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def parse_option(answer: str, options: Sequence[str]) -> str:
    r"""The letter of the option that an answer names; empty if it names none, or several.

    Markdown, quotes, tags, LaTeX and full-width characters are taken off first. Then, in this
    order: the text of one option and nothing else; what `\boxed`, `<answer>` or `[[ ]]` holds;
    the last conclusion (`The answer is B`, `so (B)`, `B is correct`); a letter alone on its line
    (`b`, `(B).`); one that heads the answer (`B. a cat`); one in brackets, or after `option`; the
    only option whose text is in the answer.

    Args:
        answer: All that the model wrote.
        options: Texts of the options, A first.
    """
    return _Reading(options).option(answer)


def parse_pope(answer: str) -> str:
    """`no` if the first sentence holds no, not or No; else `yes`.

    Source: POPE's own rule, which leaves no answer open.
    """
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def parse_mme(answer: str) -> str:
    """`yes` or `no` if the answer begins so; else `other`, which is wrong.

    Source: MME's own rule, which looks at the first 4 characters.
    """
    start = answer.lower()[:4]
    return next((name for name in ("yes", "no") if name in start), "other")


class _Reading:
    """Finds which of some options a text names."""

    def __init__(self, options: Sequence[str]) -> None:
        self._letters = frozenset(map(letter, range(len(options))))
        self._texts = [" ".join(plain_text(option).split()) for option in options]
        self._clauses = [text.rstrip(" .;,!") or text for text in self._texts]
        self._words = [_words(text) for text in self._texts]

    def option(self, answer: str, *, is_marked: bool = False) -> str:
        text = plain_text(answer).strip()
        given = " ".join(text.split()).casefold()
        same = [at for at, option in enumerate(self._texts) if option.casefold() == given]
        if len(same) == 1 and not re.fullmatch("[a-z]", given):
            return letter(same[0])
        for marked in () if is_marked else reversed(marked_answers(answer)[-_MAX_MARKED:]):
            if found := self.option(marked, is_marked=True):
                return found
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        alone = [
            (found[1] or found[2]).upper()
            for line in lines
            if (found := _ALONE.fullmatch(line[-_WINDOW:]))
        ]
        for named in (
            self._conclusions(text)[-1:],
            self._known(alone),
            self._headings(text, lines),
            self._headed_by_text(lines),
            self._mentions(text),
        ):
            if named:
                return named[0] if len(set(named)) == 1 else ""
        return self._by_text(text)

    def _known(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self._letters]

    def _conclusions(self, text: str) -> list[str]:
        """What each conclusion names, in order; an empty name stands for several options."""
        found: list[tuple[int, str]] = []
        for pattern in (_ANNOUNCED, _CONCLUDED):
            start = 0
            while match := pattern.search(text, start):
                # A gap that leads to nothing may hide a shorter one that leads to the answer.
                start = match.start() + 1
                before = text[max(0, match.end() - _WINDOW) : match.end()].rstrip(" :\n")
                said = re.split(r"[.,;:!?\n]|\bbut\b", before)[-1]
                sentence = re.split(r"[.;!?\n]\s*", before)[-1]
                if not _DOUBTED.search(said) and not _CONDITION.match(sentence):
                    name = self._at(text, match.end(), ends_clause=pattern is _CONCLUDED)
                    if name is not None:
                        found.append((match.end(), name))
        for match in _APPROVED.finditer(text):
            name = (match["letter"] or match["chinese"]).upper()
            said = re.split(r"[.,;:!?\n]", text[max(0, match.end() - _WINDOW) : match.end()])[-1]
            if name in self._letters and not _DOUBTED.search(said):
                found.append((match.end(), name))
        return [name for _, name in sorted(found, key=lambda place: place[0])]

    def _at(self, text: str, start: int, *, ends_clause: bool) -> str | None:
        """The option named at a place: by its letter, or by its text; empty for several."""
        tail = text[start : start + _WINDOW]
        by_text = self._text_at(tail)
        match = re.match(_LETTER, tail)
        if match is None or match["letter"].upper() not in self._letters:
            return None if ends_clause else by_text
        name, rest = match["letter"], tail[match.end() :]
        is_bracketed = match[0].strip() != name
        ends = _CLAUSE_END.match(rest) is not None
        if by_text is not None and not is_bracketed and not ends:
            return by_text  # `B cells` where that is an option, and `a cat`.
        if by_text is not None and len(self._clauses[ord(by_text) - ord("A")]) > len(match[0]) + 1:
            own = self._texts[ord(by_text) - ord("A")].casefold()
            if own.startswith(match[0].strip().casefold()):
                return by_text  # `E. coli` is an option's text, and no letter E.
        if not (is_bracketed or ends):
            if ends_clause or (name.islower() and name in "ai"):
                return None
            is_first = not re.search(r"\w\s*$", text[max(0, start - 9) : start])
            if name in "AI" and (is_first or name == "I") and not _AFTER_A.match(rest):
                return None
        return self._with_others(name.upper(), rest)

    def _with_others(self, name: str, rest: str) -> str:
        """The name, or nothing if the text goes on with `or C`."""
        while also := _ALSO.match(rest):
            other, after = also["letter"], rest[also.end() :]
            is_other = other.upper() in self._letters and (other.isupper() or "(" in also[0])
            if not is_other or not (_CLAUSE_END.match(after) or _ALSO.match(after)):
                break
            if other.upper() != name:
                return ""
            rest = after
        return name

    def _text_at(self, tail: str) -> str | None:
        """The longest option whose text a clause consists of, with or without its article."""
        line = " ".join(tail[:_WINDOW].split("\n", 1)[0].split())
        found: dict[str, str] = {}
        for given in (line, _ARTICLE.sub("", line, count=1) if _ARTICLE.match(line) else line):
            for at, option in enumerate(self._clauses):
                is_text = not re.fullmatch("[A-Za-z]?", option) and given.casefold().startswith(
                    option.casefold()
                )
                if is_text and _CLAUSE_END.match(given[len(option) :]):
                    found.setdefault(letter(at), option)
        longest = max(map(len, found.values()), default=0)
        names = [name for name, option in found.items() if len(option) == longest]
        return names[0] if len(names) == 1 else None

    def _headings(self, text: str, lines: Sequence[str]) -> list[str]:
        """Letters that head lines; of a list that the last line comes back to, the last one."""
        names: list[str] = []
        for line in (line[:_WINDOW] for line in lines):
            match = _HEADING.match(line)
            name = (match["letter"] or match["capital"]) if match else None
            if name is None and line[0] in self._letters and self._is_own_text(line):
                name = line[0]
            if name is not None and name.upper() in self._letters:
                name = name.upper()
                names.append(name)
                if match and not self._with_others(
                    name, line[line.upper().index(name) + 1 :].lstrip(")]】")
                ):
                    return [name, ""]
        listed = {
            name
            for name in self._letters
            if re.search(
                rf"(?<![A-Za-z]){name}[)\].:]+\s*{re.escape(self._texts[ord(name) - ord('A')])}",
                text,
                re.IGNORECASE,
            )
        }
        if len(set(names)) > 1 and names.count(names[-1]) > 1 and _HEADING.match(lines[-1]):
            return names[-1:]
        return [*names, ""] if names and len(listed) > 1 else names

    def _headed_by_text(self, lines: Sequence[str]) -> list[str]:
        """`False. It is not so`: an option whose text is the first clause."""
        name = self._text_at(lines[0]) if lines else None
        return [name] if name else []

    def _is_own_text(self, line: str) -> bool:
        own = self._texts[ord(line[0]) - ord("A")]
        return bool(own) and " ".join(line[1:].split()).casefold().startswith(own.casefold())

    def _mentions(self, text: str) -> list[str]:
        names = []
        for match in _MENTIONED.finditer(text):
            before = re.split(r"[.,;:!?\n]", text[max(0, match.start() - _WINDOW) : match.start()])[
                -1
            ]
            after = text[match.end() : match.end() + _WINDOW]
            if not _DENIED.match(after) and not _DOUBTED.search(before):
                names.append((match["bracketed"] or match["named"]).upper())
        return self._known(names)

    def _by_text(self, text: str) -> str:
        words = _words(text)
        equal = [index for index, option in enumerate(self._words) if option == words]
        if words and len(equal) == 1:
            return letter(equal[0])
        held = [
            index
            for index, option in enumerate(self._words)
            if (
                any(_places(words, option))
                if len(option) != 1 or not _COMMON.fullmatch(option[0])
                else re.search(
                    rf"(?:^|[.!?:\n])\s*{option[0]}\b|\b{option[0]}\s*(?:[.!]|$)", text, re.I
                )
                and len(option[0]) > 1
            )
        ]
        # Of "cat" and "black cat", the longer one is meant.
        longest = [
            index
            for index in held
            if not any(
                other != index
                and self._words[other] != self._words[index]
                and any(_places(self._words[other], self._words[index]))
                for other in held
            )
        ]
        return letter(longest[0]) if len(longest) == 1 else ""


def _words(text: str) -> list[str]:
    return [
        word.replace(",", "") if _THOUSANDS.fullmatch(word) else word
        for word in _WORD.findall(text.casefold())
    ]


def _places(words: Sequence[str], part: Sequence[str]) -> Iterator[bool]:
    """Whether a part stands at each place of a text where it is not denied."""
    size = len(part)
    for start in range(len(words) - size + 1 if size else 0):
        before = [word for word in words[max(0, start - 2) : start] if word not in ("a", "the")]
        yield list(words[start : start + size]) == list(part) and before[-1:] != ["not"]
