"""The option an answer names: every way to wrap a letter, and what must not be taken for one."""

from __future__ import annotations

import pytest

from mm1_pipeline.evaluation.answers.option_parsing import parse_option

OPTIONS = ("a red ball", "12 cm", "Vitamin C", "none of these", "34 cm")
LETTERS = "ABCDE"

# {X} is the letter, {x} its small one, {F} its full-width one, {T} the option's text.
ALONE = [
    "{X}", "{x}", "({X})", "({x})", "{X}.", "{x}.", "{X})", "[{X}]", "{{{X}}}", "**{X}**", "*{X}*",
    "__{X}__", "`{X}`", '"{X}"', "'{X}'", "“{X}”", "«{X}»", "<b>{X}</b>", "{X}</s>", "- {X}",
    "> {X}", "# {X}", "\n{X}\n", "$\\text{{{X}}}$", "\\({X}\\)", "{F}", "（{F}）", "【{X}】",
    "{X}。", "✅ {X}", "Option {X}", "Choice {X}.", "Letter: {X}", "Result: {X}", "→ {X}",
]  # fmt: skip
WITH_TEXT = [
    "{X}. {T}", "({X}) {T}", "{X}) {T}", "{X}: {T}", "{X} - {T}", "{X}, {T}", "{X} ({T})",
    "**{X}. {T}**", "**{X}.** {T}", "{X}. {T}\nBecause it fits.", "{T}", "**{T}**", "{X}、{T}",
    "{X}.{T}",
]  # fmt: skip
CONCLUDING = [
    "Answer: {X}", "answer:{x}", "answer: {x}.", "ANSWER: ({X})", "Ans: {X}", "Answer is {X}",
    "**Answer:** {X}", "Answer: **{X}**", "**Answer: {X}**", "**Answer:** {X}. {T}", "Answer - {X}",
    "Answer\n{X}", "Answer:\n\n**{X}**", "### Final Answer\n{X}", "Final answer: {X}",
    "Answer: Option {X}", "Answer → {X}", "The answer is {X}", "The answer is {X}. {T}",
    "The answer is {X}: {T}.", "The answer is ({X}) {T}", "The answer is **{X}**",
    'The answer is "{X}".', "the answer is {x}", "The answer is option {X}.",
    "The correct answer is: {X}", "The correct option is ({X}).", "The best choice is {X}",
    "The correct statement is {X}.", "Based on the image, the answer is {X}.",
    "The answer to the question is {X}.", "The answer should be {X}", "My answer is {X}",
    "The answer is most likely {X}.", "The answer is {X} because it fits.", "It is {X}",
    "It's {X}.",
    "It must be {X}.", "I think it is {X}.", "I choose {X}", "I would go with {X}.", "I'd say {X}.",
    "So, {X}.", "Thus ({X})", "Therefore, {X}", "Therefore, the answer is {X}.", "Hence {X}.",
    "{X} is correct.", "{X} is the correct answer.", "Hence, option {X} is correct.",
    "\\boxed{{{X}}}", "$\\boxed{{{X}}}$", "\\(\\boxed{{\\text{{{X}}}}}\\)", "\\boxed{{({X})}}",
    "\\boxed{{{X}. {T}}}", "\\boxed{{{T}}}", "[[{X}]]", "<answer>{X}</answer>",
    "<answer>\n{x}\n</answer>", "<ANSWER>{X}. {T}</ANSWER>", "<answer>{T}</answer>",
    "The answer is $\\boxed{{{X}}}$.", "The answer is {T}.", "Answer: {T}",
    "<think>It may be A, or B.</think>\n{X}", "答案：{X}", "答案是{X}。", "答案：{F}",
    "正确答案：（{F}）", "故选：{X}.", "所以选{X}", "因此选择{X}。", "【答案】{X}", "答案为{X}",
]  # fmt: skip
BEFORE = [
    "",
    "The scene shows several things. I see a tree. A man stands there.\n",
    "Let's think step by step.\n1. It is small.\n2. It moves.\n\n",
]
MENTIONS = [
    "Option A is too small and (B) is far away.\n",
    "It could be A, or B, or C. We look closer.\n\n",
    "If it were red, the answer would be A. It is not.\n",
    "The answer is not A. Vitamin C is no option (D).\n",
    "A. no\nB. perhaps\nC. hardly\nD. never\n\n",
    "The answer is E? Wait. ",
]
AFTER = ["", "\nThis is since the scene shows it.", "\n\nExplanation: A cat is shown. I like it."]


def wrapped(wording: str, letter: str) -> str:
    text = OPTIONS[LETTERS.index(letter)]
    full = chr(ord(letter) - ord("A") + 0xFF21)
    return wording.format(X=letter, x=letter.lower(), F=full, T=text)


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("wording", [*ALONE, *WITH_TEXT, *CONCLUDING])
def test_a_letter_is_found_in_every_wrapper_with_and_without_explanation(wording, letter):
    for before in BEFORE:
        for after in AFTER:
            answer = before + wrapped(wording, letter) + after
            assert parse_option(answer, OPTIONS) == letter, answer


@pytest.mark.parametrize("mentions", MENTIONS)
@pytest.mark.parametrize("wording", CONCLUDING)
def test_a_conclusion_counts_for_more_than_what_was_mentioned_before(wording, mentions):
    for letter in LETTERS:
        answer = mentions + wrapped(wording, letter)
        assert parse_option(answer, OPTIONS) == letter, answer


XY = ("left", "right", "upper", "lower")
TEN = tuple(f"kind {number}" for number in "qrstuvwxyz")


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        # articles, pronouns, and letters inside of names are no options
        ("A cat is on the mat", XY),
        ("Answer: A large dog stands here", XY),
        ("I am not sure.", TEN),
        ("I think it is so", TEN),
        ("Answer: I don't know", TEN),
        ("Sorry, I can't help with that.", TEN),
        ("Vitamin C is shown", XY),
        ("Plan B", XY),
        ("A's", XY),
        ("B12", XY),
        ("C++", XY),
        ("The answer is B12.", XY),
        ("A-shaped", XY),
        ("She got a B in this test of mine", XY),
        # several, or none
        ("A or B", XY),
        ("A and B", XY),
        ("A/B", XY),
        ("(A), (B)", XY),
        ("(C) or (D)", XY),
        ("The answer is A or B.", XY),
        ("The answer is either A or B", XY),
        ("The answers are A and C.", XY),
        ("A\nB\nC\nD", XY),
        ("A. left\nB. right\nC. upper\nD. lower", XY),
        ("A. left B. right C. upper D. lower", XY),
        ("The answer choices are A, B, C and D.", XY),
        ("\\boxed{A, B}", XY),
        # denied or conditional
        ("The answer is not A.", XY),
        ("The answer can't be A.", XY),
        ("I would not choose A.", XY),
        ("Option A is wrong.", XY),
        ("If it moves, the answer is A. Otherwise, the answer is B.", XY),
        ("It is not the left one that I mean, not the right", XY),
        # out of range
        ("E", XY),
        ("The answer is E.", XY),
        ("\\boxed{7}", XY),
        ("", XY),
        ("5.5 m", ("5", "6")),
        ("There is no information on it.", ("yes", "no")),
    ],
)
def test_nothing_is_guessed(answer, options):
    assert parse_option(answer, options) == ""


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("The answer is vitamin C", ("vitamin A", "vitamin C", "iron"), "B"),
        ("The answer is B cells.", ("B cells", "T cells"), "A"),
        ("It is E. coli.", ("virus", "E. coli", "yeast", "fungus", "other"), "B"),
        ("Both A and B", ("left", "right", "Both A and B"), "C"),
        ("The answer is a cat.", ("dog", "cat"), "B"),
        ("Answer: A cat", ("dog", "cat"), "B"),
        ("A small dog", ("dog", "cat"), "A"),
        ("The answer is not A, it is B.", XY, "B"),
        ("The answer is not A but B.", XY, "B"),
        ("The answer is A. Wait, the answer is B.", XY, "B"),
        ("Option A is wrong, option B fits.", XY, "B"),
        ("5.5", ("5", "5.5"), "B"),
        ("The answer is 5.5", ("5", "5.5"), "B"),
        ("Therefore, the answer is 6.", ("6", "7", "5"), "A"),
        ("It has 1000 parts", ("100", "1,000"), "B"),
        ("-5", ("5", "-5"), "B"),
        ("B+", ("A+", "B+", "AB+"), "B"),
        ("I", TEN, "I"),
        ("The answer is I.", TEN, "I"),
        ("a", XY, "A"),
        ("False. The bars (a) differ.", ("True.", "False."), "B"),
        ("I would say yes.", ("yes", "no"), "A"),
        ("1/2", ("1/20", "1/2", "11/2"), "B"),
    ],
)
def test_texts_of_options_and_their_letters(answer, options, expected):
    assert parse_option(answer, options) == expected


def test_a_long_answer_is_read_in_good_time():
    """Patterns with gaps must not go back and forth over a repeating answer."""
    for piece in ("the answer ", "so ", "(A) ", "A, ", "\\boxed{", "<answer>", "**", "A. x\n", "["):
        parse_option(piece * 1_000, XY)
