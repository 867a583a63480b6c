"""The grammar of the sample data: the rules that turn a meaning into sentences and a label."""

from __future__ import annotations

import random
from collections.abc import Callable

from mtmeta.sample.lexicon import Group, actions, templates, words

SPLITS = ("train", "dev", "test")
# How often a dev or test slot takes a word that no train set has, and one that only other tasks' train sets have.
FRESH, LENT = 0.7, 0.15
QUESTIONS = ("question how", "question where", "question when")
# How a review with two clauses adds up.
SUMS = {2: (1, 1), 1: (2, -1), 0: (1, -1), -1: (-2, 1), -2: (-1, -1)}
# How much each shared part of a caption adds to the similarity.
WEIGHTS = {"action": 3.0, "object": 1.2, "person": 0.8}


class Writer:
    """Draws words and templates for one task and split, and notes which templates it used."""

    def __init__(self, task: str, split: str) -> None:
        self.split = split
        self.rng = random.Random(f"mtmeta sample 2 {task} {split}")
        self.used: list[str] = []

    def entry(self, group: Group, home: bool) -> str:
        """Draw one entry of a list that the split may use, with its names if it has several."""
        if self.split == "train":
            return self.rng.choice(group.both + (group.home if home else group.away))
        draw = self.rng.random()
        fresh = group.dev if self.split == "dev" else group.test
        unknown = fresh if draw < FRESH else ()
        lent = group.lent(home, self.split) if draw < FRESH + LENT else ()
        return self.rng.choice(unknown or lent or group.both)

    def word(self, name: str, home: bool) -> str:
        """Draw one entry of the list of that name."""
        return self.entry(words(name), home)

    def name(self, entry: str) -> str:
        """Draw one of the names of an entry."""
        return self.rng.choice(entry.split("/"))

    def template(self, kind: str, avoid: str = "") -> str:
        """Draw one template of the split, other than `avoid`."""
        text = self.rng.choice([text for text in templates()[kind][self.split] if text != avoid])
        self.used.append(text)
        return text

    def opinion(self, score: int, home: bool) -> str:
        """Draw a predicate that says `score`, from -2 to 2."""
        sign = 1 if score > 0 else -1
        draw = self.rng.random()
        if abs(score) == 2 and draw < 0.4:
            return f"{self.word('stronger', home)} {self.word(f'opinion {sign}', home)}"
        if abs(score) == 1:
            if draw < 0.15:
                return f"{self.word('weaker', home)} {self.word(f'opinion {sign}', home)}"
            if draw < 0.35:
                return f"{self.word('denial', home)} {self.word(f'opinion {-sign}', home)}"
            adjective = self.word(f"opinion {sign}", home)
            if draw < 0.6 and adjective.endswith(("+ful", "+less")):
                return f"{adjective}+ly {self.word('making', home)}"
            return adjective
        return self.word(f"opinion {score}", home)


def sst(write: Writer, number: int) -> tuple[str, None, int]:
    """Write one review; the label is the sum of its opinions, from 0 (very negative) to 4 (very positive)."""
    score = number % 5 - 2
    subject, other = write.word("things", True), write.word("things", True)
    draw = write.rng.random()
    if abs(score) == 2 and draw < 0.2:
        adjective = write.word(f"superlative {score}", True).removesuffix("e") + "+est"
        return write.template("best").format(e=adjective, t=subject), None, score + 2
    if draw > 0.65 and subject != other:
        pair = list(SUMS[score])
        write.rng.shuffle(pair)
        parts = {"o": write.opinion(pair[0], True), "p": write.opinion(pair[1], True)}
        return write.template("double").format(t=subject, u=other, **parts), None, score + 2
    return write.template("review").format(t=subject, o=write.opinion(score, True)), None, score + 2


def questions(write: Writer, label: int) -> tuple[str, str]:
    """Write two questions about one object; if the label is 0, the second asks about the contrary action."""
    rng = write.rng
    sides = list(rng.choice(actions()))
    rng.shuffle(sides)
    action, contrary = sides
    kind = rng.choice(QUESTIONS)
    item = write.name(write.word("objects", True))
    first = write.template(kind)
    second = write.template(kind, avoid=first)
    one = first.format(v=write.entry(action, True), x=item)
    return one, second.format(v=write.entry(action if label else contrary, True), x=item)


def verdicts(write: Writer, label: int) -> tuple[str, str]:
    """Write two verdicts on one subject; if the label is 0, a good and a bad one."""
    rng = write.rng
    subject = write.word("things", False)
    score = rng.choice((-1, 1))
    score2 = score if label else -score
    first = write.template("verdict")
    second = write.template("verdict", avoid=first)
    one = first.format(t=subject, o=write.opinion(score * rng.choice((1, 2)), False))
    return one, second.format(t=subject, o=write.opinion(score2 * rng.choice((1, 2)), False))


def para(write: Writer, number: int) -> tuple[str, str, int]:
    """Write two questions, or two verdicts; the label is 1 if they come to the same and 0 if not."""
    label = number % 2
    one, two = questions(write, label) if number % 4 < 2 else verdicts(write, label)
    return one, two, label


def remarks(write: Writer) -> tuple[str, str, float]:
    """Write two remarks; the similarity follows from the subject and from how far apart the opinions are."""
    rng = write.rng
    subject = write.word("things", False)
    other = subject if rng.random() < 0.65 else write.word("things", False)
    one = rng.choice((-2, -1, 0, 1, 2))
    two = one if rng.random() < 0.4 else rng.choice((-2, -1, 0, 1, 2))
    if one == two:
        labels = (5.0, 2.6)
    elif one * two > 0:
        labels = (4.2, 2.0)
    elif one * two == 0:
        labels = (2.6, 1.0)
    else:
        labels = (1.0, 0.0)
    first, second = write.template("remark"), write.template("remark")
    texts = first.format(t=subject, o=write.opinion(one, False)), second.format(t=other, o=write.opinion(two, False))
    return *texts, labels[subject != other]


def captions(write: Writer) -> tuple[str, str, float]:
    """Write two captions; the similarity is the sum of the weights of the parts that they share."""
    rng = write.rng
    pair = rng.choice(actions())
    side = rng.randrange(2)
    action, person, item = pair[side], write.word("people", True), write.word("objects", False)
    action2, person2, item2 = action, person, item
    if rng.random() < 0.5:
        action2 = rng.choice(rng.choice(actions())) if rng.random() < 0.6 else pair[1 - side]
    if rng.random() < 0.45:
        item2 = write.word("objects", False)
    if rng.random() < 0.4:
        person2 = write.word("people", True)
    shared = {"action": action2 is action, "object": item == item2, "person": person == person2}
    sentences = []
    for who, target, verbs in ((person, item, action), (person2, item2, action2)):
        verb = write.entry(verbs, False)
        parts = {"w": write.name(who), "x": write.name(target), "v": verb, "g": verb.removesuffix("+e") + "+ing"}
        sentences.append(write.template("caption").format(**parts))
    return sentences[0], sentences[1], round(float(sum(WEIGHTS[part] for part in WEIGHTS if shared[part])), 1)


def sts(write: Writer, number: int) -> tuple[str, str, float]:
    """Write two captions, or two remarks, with their similarity from 0 to 5."""
    return captions(write) if number % 2 else remarks(write)


WRITERS: dict[str, Callable[[Writer, int], tuple[str, str | None, float]]] = {"sst": sst, "para": para, "sts": sts}
