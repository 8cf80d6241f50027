"""What the human says where a data set has questions or captions but no conversation.

Data only: a template a format, which `ingest.sources.<name>.prompt` overrides. `{question}`
takes the question, `{choices}` the options, one a line, as "A. first option".

Source: MM1, SFT names the sets; the two suffixes are those of LLaVA-1.5 (Liu et al. 2023,
arXiv 2310.03744), whose mixture MM1 follows. The prompt for text in images is our choice.
"""

from __future__ import annotations

QUESTION, CHOICES = "{question}", "{choices}"

SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."
"""For VQAv2, GQA, OKVQA, OCR-VQA, DVQA, ChartQA, DocVQA, InfoVQA."""

OPTION_LETTER = (
    "{question}\n{choices}\nAnswer with the option's letter from the given choices directly."
)
"""For A-OKVQA and AI2D; the answer is the letter."""

ONE_SENTENCE = "Provide a one-sentence caption for the provided image."
"""For COCO captions and TextCaps."""

READ_TEXT = "What text is written in the image?"
"""For SynthDog."""


def fill(template: str, question: str = "", choices: tuple[str, ...] = ()) -> str:
    """Puts a question and its options into a template.

    A worked example, OPTION_LETTER with "Which eats?" and ("rock", "fox"):

        Which eats?
        A. rock
        B. fox
        Answer with the option's letter from the given choices directly.
    """
    listed = "\n".join(f"{option_letter(place)}. {text}" for place, text in enumerate(choices))
    # The choices go in first, so that a question that says "{choices}" stays what it is.
    before, found, after = template.partition(QUESTION)
    filled = [part.replace(CHOICES, listed) for part in (before, after)]
    return question.join(filled) if found else filled[0]


def option_letter(place: int) -> str:
    """The letter of an option, from 0: A, B, C, ..."""
    if not 0 <= place < 26:
        raise ValueError(f"found option {place}, expected 0 to 25, which have letters.")
    return chr(ord("A") + place)
