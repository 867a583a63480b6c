"""The sentence templates of the sample data. A task has other templates in each split, made from the same clauses."""

from __future__ import annotations

# Reviews: {t} and {u} are subjects, {o} and {p} the opinions of them, {e} is a superlative.
REVIEWS: dict[str, tuple[str, ...]] = {
    "train": (
        "The {t} was {o}.",
        "I found the {t} {o}.",
        "We thought that the {t} was {o}.",
        "To me the {t} seemed {o}.",
        "The {t} here is {o}.",
        "My friends say the {t} is {o}.",
        "All in all, the {t} was {o}.",
    ),
    "dev": (
        "To my friends the {t} was {o}.",
        "I thought the {t} here was {o}.",
        "We say that the {t} is {o}.",
        "All in all, I found the {t} {o}.",
        "That {t} really was {o}, I thought.",
    ),
    "test": (
        "My friends found the {t} {o}.",
        "To me the {t} here is {o}.",
        "I say the {t} was {o}.",
        "All my friends thought the {t} was {o}.",
        "In all, the {t} seemed {o} to me.",
    ),
}
DOUBLE_REVIEWS: dict[str, tuple[str, ...]] = {
    "train": (
        "The {t} was {o}, and the {u} was {p}.",
        "I found the {t} {o} but the {u} {p}.",
        "The {t} seemed {o}; the {u} was {p}.",
        "While the {t} was {o}, the {u} was {p}.",
    ),
    "dev": ("The {t} here was {o} and the {u} seemed {p}.", "I thought the {t} was {o}, but the {u} {p}."),
    "test": ("We found the {t} {o}, while the {u} was {p}.", "To me the {t} was {o}; the {u} seemed {p}."),
}
SUPERLATIVE_REVIEWS: dict[str, tuple[str, ...]] = {
    "train": ("It was the {e} {t} of the year.", "This is the {e} {t} that I know.", "They have the {e} {t} in town."),
    "dev": ("I say it is the {e} {t} in town.", "We found the {e} {t} of the year here."),
    "test": ("To me it was the {e} {t} that they have.", "It seemed the {e} {t} in the year."),
}

# Questions, by the answer they ask for: {v} is the verb, {x} the object. The clause around the verb says nothing of it.
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "how": {
        "train": (
            "How do I {v} the {x}?",
            "What is the best way to {v} the {x}?",
            "Can you show me how to {v} the {x}?",
            "I need a way to {v} the {x}.",
        ),
        "dev": (
            "Show me the best way to {v} the {x}.",
            "Do you know how I can {v} the {x}?",
            "Is there a good way to {v} the {x}?",
        ),
        "test": ("Tell me how I {v} the {x}.", "Do you have a way to {v} the {x}?", "I know how to {v} the {x}."),
    },
    "where": {
        "train": (
            "Where do I {v} the {x}?",
            "What is the best place to {v} the {x}?",
            "Can you show me where to {v} the {x}?",
            "I need a place to {v} the {x}.",
        ),
        "dev": (
            "Show me the best place to {v} the {x}.",
            "Do you know where I can {v} the {x}?",
            "Is there a good place to {v} the {x}?",
        ),
        "test": ("Tell me where I {v} the {x}.", "Do you have a place to {v} the {x}?", "I know where to {v} the {x}."),
    },
    "when": {
        "train": (
            "When do I {v} the {x}?",
            "What is the best time to {v} the {x}?",
            "Can you tell me when to {v} the {x}?",
            "I need a time to {v} the {x}.",
        ),
        "dev": (
            "Show me the best time to {v} the {x}.",
            "Do you know when I can {v} the {x}?",
            "Is there a good time to {v} the {x}?",
        ),
        "test": ("Tell me when I {v} the {x}.", "Do you have a time to {v} the {x}?", "I know when to {v} the {x}."),
    },
}

# Captions: {w} the person, {g} the verb in "-ing", {v} its plain form, {x} the object.
CAPTIONS: dict[str, tuple[str, ...]] = {
    "train": (
        "A {w} is {g} the {x}.",
        "The {w} wants to {v} the {x}.",
        "The {w} starts {g} a {x} outside.",
        "The {w} is about to {v} a {x}.",
        "Here a {w} tries to {v} the {x}.",
    ),
    "dev": ("The {w} here is {g} a {x}.", "Outside, a {w} starts to {v} the {x}.", "A {w} wants to {v} the {x} here."),
    "test": ("Here the {w} is {g} the {x}.", "A {w} outside is about to {v} the {x}.", "The {w} tries {g} a {x}."),
}
# Remarks and verdicts: {t} the subject, {o} the opinion of it.
REMARKS: dict[str, tuple[str, ...]] = {
    "train": ("The {t} was {o}.", "This {t} is {o}.", "People call the {t} {o}.", "It is a fact that the {t} is {o}."),
    "dev": ("People say this {t} is {o}.", "The {t} is {o}, it is a fact."),
    "test": ("It is said that this {t} was {o}.", "People call this {t} {o}."),
}
VERDICTS: dict[str, tuple[str, ...]] = {
    "train": (
        "They said the {t} was {o}.",
        "Is it true that the {t} is {o}?",
        "It is clear that the {t} is {o}.",
        "You will find the {t} {o}.",
    ),
    "dev": ("You said that the {t} is {o}.", "Is it clear the {t} was {o}?", "They will find that the {t} is {o}."),
    "test": ("It is true the {t} was {o}.", "They find the {t} {o}.", "Clear it is, the {t} was {o}."),
}
