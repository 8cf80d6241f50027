"""Random answers with everything that the official VQA scorer has a rule for."""

from __future__ import annotations

import random

# fmt: off
WORDS = [
    "a", "an", "the", "yes", "no", "none", "zero", "one", "two", "three", "ten", "10", "2", "cat",
    "dogs", "red", "blue", "t-shirt", "frisbee", "man's", "dont", "don't", "cant", "couldnt",
    "couldn'tve", "hadnt've", "hes", "he's", "im", "ive", "isnt", "itd've", "its", "lets", "maam",
    "mightve", "oclock", "o'clock", "ow'sat", "shes", "somebody'd", "somebodyd", "someones",
    "thats", "theres", "theyre", "twas", "wasnt", "weve", "whats", "wheres", "wholl", "wont",
    "wouldnt", "yall", "y'all", "youd", "youre", "youve", "1,000", "3.5", ".5", "5.", "u.s.",
    "mr.", "St.", "N/A", "left/right", "10:30", "$5", "50%", "#1", "(left)", "[right]",
    "\"stop\"", "ice-cream", "hot_dog", "a+b", "x=y", "<b>", "@home", "`tick`", "what?", "wow!",
    "e-mail", "Red", "YES", "The", "tie,shirt", "black,white", "no,", "no.", "...", "&", ";",
    "a;b", "{x}", "\n", "12,5", "x,y",
]
# fmt: on


def random_answers(count: int) -> list[tuple[str, list[str]]]:
    """An answer and ten people's answers, many of them alike in various spellings."""
    rng = random.Random(20260611)

    def text() -> str:
        words = rng.choices(WORDS, k=rng.choice([1, 1, 1, 2, 2, 3, 4]))
        separator = rng.choice([" ", " ", " ", "  ", "\t", " \n", ", ", "-"])
        return rng.choice(["", "", "", " "]) + separator.join(words)

    def spelled(answer: str) -> str:
        match rng.randrange(8):
            case 0:
                return answer.upper()
            case 1:
                return f"the {answer}"
            case 2:
                return f"{answer}."
            case 3:
                return answer.replace("'", "")
            case 4:
                return f" {answer}\n"
            case 5:
                return answer.replace("-", " ").replace(",", "")
        return answer

    rows = []
    for _ in range(count):
        candidates = [text() for _ in range(rng.choice([1, 1, 2, 3, 5]))]
        spell = spelled if rng.random() < 0.8 else str
        humans = [spell(rng.choice(candidates)) for _ in range(10)]
        rows.append((spelled(rng.choice([*candidates, text()])), humans))
    return rows
