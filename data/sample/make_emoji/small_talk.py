"""Messages without a picture, and what a model of this sample can honestly say to them."""

from __future__ import annotations

from typing import Any

_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hi", "Hi there!", "Hello!", "Good morning", "Good evening", "Hey"),
        "Hello! Show me a small drawing and ask me what it is.",
    ),
    (
        ("What can you do?", "What can I ask you?", "How do you work?", "Help", "help me",
         "What are you for?", "What should I do?", "How can I use you?"),
        "I name small drawings, say their kind and colour, count them and read digits.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Are you a person?",
         "Who made you?", "Are you ChatGPT?"),
        "I am a very small model that was trained on drawings. I only know what they show.",
    ),
    (
        ("Thanks", "Thank you", "Thank you!", "Thanks a lot", "Great", "Well done", "Nice"),
        "You are welcome. Show me another drawing.",
    ),
    (
        ("Bye", "Goodbye", "See you", "Good night", "That is all"),
        "Goodbye!",
    ),
    (
        ("What is the capital of France?", "Who won the match?", "What is 12 times 9?",
         "Write a poem", "Tell me a joke", "Translate this into German", "What time is it?",
         "How is the weather today?", "Write a program that sorts a list", "Who is the president?",
         "Explain quantum physics", "What should I eat?", "Tell me a story", "Solve this equation",
         "How old is the Earth?", "Why is the sky blue?", "Recommend a book", "What is love?",
         "Can you sing?", "Summarise this text"),
        "I do not know. I was trained on small drawings: show me one and ask what it is.",
    ),
    (
        ("What is this?", "What do you see?", "What does the picture show?", "What colour is it?",
         "How many pictures are there?", "Describe the picture."),
        "I see no picture. Show me one with your question.",
    ),
    (
        ("asdf", "???", "jkl", "xyz 123", "...", "qwertz", "12345", "blah blah"),
        "I did not understand that. Show me a small drawing and ask me what it is.",
    ),
)  # fmt: skip
"""Several ways to say one thing, and the answer to all of them."""


def small_talk() -> list[dict[str, Any]]:
    """Conversations of one exchange in LLaVA's layout."""
    said = [(message, answer) for messages, answer in _TALK for message in messages]
    return [
        {
            "id": f"talk_{number:04d}",
            "conversations": [
                {"from": "human", "value": message},
                {"from": "gpt", "value": answer},
            ],
        }
        for number, (message, answer) in enumerate(said)
    ]
