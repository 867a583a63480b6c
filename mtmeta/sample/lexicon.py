"""The words of the sample data and the rule that says which task and split may use which word.

Every word list has five columns, separated by a bar::

    both | home | away | dev | test

`home` is the task that the list mainly serves; the other tasks that borrow it are `away`. `both` words are in the
train sets of home and away. A `home` word is in the train set of the home task only, so the other tasks meet it first
in their dev or test set; an `away` word is the mirror case. `dev` and `test` words are in no train set at all: they
are built from stems and affixes that other words teach. A model that shares its encoder between the tasks and reads
words in pieces can place all of them; one that only remembers its own train set cannot.

A plus sign marks where a word is made of pieces ("joy+less"), an underscore stands for a space, and a slash separates
synonyms.
"""

from __future__ import annotations

from typing import NamedTuple


class Group(NamedTuple):
    """One word list, in its five columns."""

    both: tuple[str, ...]
    home: tuple[str, ...]
    away: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]

    def known(self, home: bool) -> tuple[str, ...]:
        """The words in the train set of the home task, or of an away task."""
        return self.both + (self.home if home else self.away)

    def fresh(self, home: bool, split: str) -> tuple[str, ...]:
        """The words kept for a dev or test set: what other tasks lend (every second word each), and new forms."""
        lent = self.away if home else self.home
        return lent[0::2] + self.dev if split == "dev" else lent[1::2] + self.test


def group(table: str) -> Group:
    """Read one row of columns; columns left out at the end are empty."""
    columns = [tuple(part.split()) for part in table.split("|")]
    columns += [()] * (5 - len(columns))
    return Group(*columns)


# Opinions by strength. Home: sst; away: para and sts. The ending "-less" and the opening "un-" turn the sign of a
# stem, and most stems of the dev and test columns are known with the other sign.
OPINIONS: dict[int, Group] = {
    2: group(
        "superb excellent brilliant fantastic perfect | wonder+ful glorious marvellous splendid"
        " | magnificent terrific sublime dazzl+ing tremendous fabulous"
    ),
    1: group(
        "pleasant joy+ful grace+ful friendly help+ful charm+ing enjoy+able good"
        " | decent hope+ful soul+ful cheer+ful original convinc+ing colour+ful lively play+ful inspir+ed"
        " | elegant clever taste+ful lik+able care+ful appeal+ing generous engag+ing"
        " | power+ful purpose+ful spirit+ed | flavour+ful meaning+ful reward+ing"
    ),
    0: group("average ordinary | standard usual | typical moderate"),
    -1: group(
        "dull weak joy+less un+pleasant care+less un+friendly bor+ing bad"
        " | bland clumsy life+less point+less flavour+less un+original un+convinc+ing meaning+less power+less slow"
        " | tedious shoddy charm+less dreary shape+less annoy+ing purpose+less un+appeal+ing"
        " | grace+less cheer+less soul+less un+help+ful un+lik+able un+inspir+ed"
        " | taste+less hope+less colour+less un+enjoy+able un+engag+ing un+reward+ing"
    ),
    -2: group(
        "awful terrible horrible dread+ful disgust+ing | dire hideous atrocious rotten"
        " | abysmal horrid ghastly vile pathetic lousy"
    ),
}

# Short adjectives that take "-est"; the superlative doubles their strength.
SUPERLATIVES: dict[int, Group] = {
    2: group("kind neat smart fine sweet warm bright bold | | | clever fresh | smooth calm"),
    -2: group("dull weak slow cheap rude stale bleak cold | | | bland harsh | poor mean"),
}

STRONGER = group("very really | so | truly extremely")
WEAKER = group("fairly | a_little | somewhat slightly")
DENIAL = group("not far_from | | hardly anything_but")
MAKING = group("made | done | presented arranged")

THINGS = group(  # what a review is about
    "film soup service room music story staff tea book"
    " | plot meal phone hotel song museum story+line sound+track book+shop bed+room"
    " | screen sauce concert script market tour driver tea+house play+list guide+book"
    " | story+book tea+room play+room book+list | song+book play+house tea+shop sound+room"
)

# People in captions. Home: sts, and no other task has any.
PEOPLE = group(
    "woman/lady man/gentleman child/kid teach+er/tutor doctor/physician girl boy work+er/labourer"
    " farm+er/grow+er student/pupil post+man milk+man"
    " | | | paint+er sing+er police+man sales+man | build+er danc+er fire+man crafts+man"
)

# Objects. Home: para; away: sts.
OBJECTS = group(
    "box/crate bag/sack cupboard/cabinet drawer/tray tool+box book+case hand+bag tea+pot"
    " | locker jar wallet/purse wardrobe/closet lunch+box desk tent mail+bag"
    " | basket/hamper barrel/keg wagon/cart bottle/flask parcel/package flower+box trunk/chest hand+cart"
    " | tool+bag lunch+bag mail+box tea+box | flower+pot book+bag mail+cart tool+case"
)

# Actions come in opposite pairs, so that a question about the same object can ask for the contrary.
ACTIONS: tuple[tuple[Group, Group], ...] = (
    (group("buy purchas+e | order collect | acquir+e obtain"), group("sell auction | resell pawn | peddl+e hawk")),
    (group("repair mend | fix overhaul | restor+e patch"), group("break smash | wreck ruin | damag+e crack")),
    (group("find locat+e | discover track | trac+e detect"), group("hid+e conceal | bury stash | disguis+e mask")),
    (group("clean wash | wip+e polish | rins+e scour"), group("stain soil | smear scratch | splatter blacken")),
    (
        group("pack load | fill box | stuff bundl+e"),
        group("un+pack un+load | empty drain | clear un+stuff | un+bundl+e | un+box"),
    ),
    (
        group("lock clos+e | seal fasten | latch bolt"),
        group("un+lock open | un+seal un+clasp | un+fasten un+latch | un+bolt | un+hook"),
    ),
)


def progressive(verb: str) -> str:
    """The "-ing" form of a verb."""
    return verb.removesuffix("+e") + "+ing"


def superlative(adjective: str) -> str:
    """The "-est" form of a short adjective."""
    return adjective.removesuffix("e") + "+est"
