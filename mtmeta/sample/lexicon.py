"""The words of the sample data and the rule that says which task and split may use which word.

Every word list has five columns, separated by a bar::

    both | home | away | dev | test

`home` is the task that the list mainly serves; the other tasks that borrow it are `away`. `both` words are in the
train sets of home and away. A `home` word is in the train set of the home task only, so the other tasks meet it first
in their dev or test set; an `away` word is the mirror case. `dev` and `test` words are in no train set at all. Some are
built from stems and affixes that other words teach; most are synonyms, antonyms or hypernyms of known words, which only
one who knows the language can place.

A plus sign marks where a word is made of pieces ("joy+less"), an underscore stands for a space, and a slash separates
names for the same thing: synonyms, or a kind and its genus ("violin/instrument").
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
        """Return the words in the train set of the home task, or of an away task."""
        return self.both + (self.home if home else self.away)

    def lent(self, home: bool, split: str) -> tuple[str, ...]:
        """Return the words that a dev or test set takes from the train sets of other tasks: every second word each."""
        lent = self.away if home else self.home
        return lent[0::2] if split == "dev" else lent[1::2]

    def fresh(self, split: str) -> tuple[str, ...]:
        """Return the words of a dev or test set that are in no train set."""
        return self.dev if split == "dev" else self.test


def group(table: str) -> Group:
    """Read one row of columns; columns left out at the end are empty."""
    columns = [tuple(part.split()) for part in table.split("|")]
    columns += [()] * (5 - len(columns))
    return Group(*columns)


# Opinions by strength. Home: sst; away: para and sts. The ending "-less" and the opening "un-" turn the sign of a stem.
OPINIONS: dict[int, Group] = {
    2: group(
        "superb excellent brilliant fantastic perfect | wonder+ful glorious marvellous splendid"
        " | magnificent terrific sublime dazzl+ing tremendous fabulous"
        " | outstanding exceptional stunning delightful amazing gorgeous exquisite"
        " | phenomenal incredible remarkable breathtaking flawless masterful spectacular"
    ),
    1: group(
        "pleasant joy+ful grace+ful friendly help+ful charm+ing enjoy+able good"
        " | decent hope+ful soul+ful cheer+ful original convinc+ing colour+ful lively play+ful inspir+ed"
        " | elegant clever taste+ful lik+able care+ful appeal+ing generous engag+ing"
        " | power+ful purpose+ful nice lovely satisfying amusing witty refreshing comfortable"
        " | flavour+ful reward+ing fun interesting worthwhile entertaining thoughtful touching polite"
    ),
    0: group("average ordinary | standard usual | typical moderate | normal routine | regular common"),
    -1: group(
        "dull weak joy+less un+pleasant care+less un+friendly bor+ing bad"
        " | bland clumsy life+less point+less flavour+less un+original un+convinc+ing meaning+less power+less slow"
        " | tedious shoddy charm+less dreary shape+less annoy+ing purpose+less un+appeal+ing"
        " | cheer+less un+help+ful un+inspir+ed disappointing lame messy confusing tiresome forgettable irritating"
        " | taste+less un+enjoy+able un+reward+ing frustrating awkward sloppy monotonous shallow silly flawed"
    ),
    -2: group(
        "awful terrible horrible dread+ful disgust+ing | dire hideous atrocious rotten"
        " | abysmal horrid ghastly vile pathetic lousy"
        " | appalling disastrous worthless revolting hateful nightmarish repulsive"
        " | wretched catastrophic sickening unbearable miserable abominable intolerable"
    ),
}

# Short adjectives that take "-est"; the superlative doubles their strength.
SUPERLATIVES: dict[int, Group] = {
    2: group("kind neat smart fine sweet warm bright bold | | | clever fresh grand brave | smooth calm great rich"),
    -2: group("dull weak slow cheap rude stale bleak cold | | | bland harsh dumb grim | poor mean foul sick"),
}

STRONGER = group("very really | so | truly extremely")
WEAKER = group("fairly | a_little | somewhat slightly")
DENIAL = group("not far_from | | hardly anything_but")
MAKING = group("made | done | presented arranged")

THINGS = group(  # subjects of reviews
    "film soup service room music story staff tea book"
    " | plot meal phone hotel song museum story+line sound+track book+shop bed+room"
    " | screen sauce concert script market tour driver tea+house play+list guide+book"
    " | story+book tea+room movie dinner novel album restaurant laptop waiter"
    " | song+book play+house comedy picnic orchestra actor camera theatre pub"
)

# People in captions. Home: sts, and no other task has any.
PEOPLE = group(
    "woman/lady man/gentleman child/kid teach+er/tutor doctor/physician girl boy work+er/labourer"
    " farm+er/grow+er student/pupil post+man milk+man"
    " | | | paint+er/artist police+man/cop chef/cook lawyer/attorney soldier/warrior athlete/sportsman"
    " | build+er fire+man author/writer thief/robber pilot/airman priest/clergyman"
)

# Objects. Home: para; away: sts.
OBJECTS = group(
    "box/crate bag/sack cupboard/cabinet drawer/tray tool+box book+case hand+bag tea+pot"
    " | locker jar wallet/purse wardrobe/closet lunch+box desk tent mail+bag"
    " | basket/hamper barrel/keg wagon/cart bottle/flask parcel/package flower+box trunk/chest hand+cart"
    " | lunch+bag sofa/couch car/vehicle violin/instrument carpet/rug rifle/weapon necklace/jewel mug/cup"
    " | flower+pot bicycle/bike coat/jacket piano/instrument pillow/cushion hammer/mallet ring/jewel plate/dish"
)

# Actions come in opposite pairs, so that a question about the same object can ask for the contrary.
ACTIONS: tuple[tuple[Group, Group], ...] = (
    (
        group("buy purchas+e | order collect | procur+e gain | acquir+e | obtain"),
        group("sell auction | resell pawn | trad+e market | peddl+e | vend"),
    ),
    (
        group("repair mend | fix overhaul | restor+e patch | rebuild renovat+e | refurbish remak+e"),
        group("break smash | wreck ruin | damag+e crack | destroy shatter | demolish crush"),
    ),
    (
        group("find locat+e | discover track | detect identify | notic+e encounter | trac+e reveal"),
        group("hid+e conceal | bury stash | disguis+e mask | cover veil | cloak camouflag+e"),
    ),
    (
        group("clean wash | wip+e polish | rins+e brush | dust launder | scour cleans+e"),
        group("stain soil | smear scratch | splatter spoil | dirty smudg+e | blacken pollut+e"),
    ),
    (
        group("pack load | fill box | stuff bundl+e | stock replenish | refill restock"),
        group("un+pack un+load | empty drain | clear un+stuff | un+bundl+e deplet+e | un+box exhaust"),
    ),
    (
        group("lock clos+e | seal fasten | latch bolt | secur+e barricad+e | padlock clamp"),
        group("un+lock open | un+seal un+clasp | un+fasten un+latch | un+bolt releas+e | un+hook reopen"),
    ),
)


def progressive(verb: str) -> str:
    """Return the "-ing" form of a verb."""
    return verb.removesuffix("+e") + "+ing"


def superlative(adjective: str) -> str:
    """Return the "-est" form of a short adjective."""
    return adjective.removesuffix("e") + "+est"
