"""The words and the grammar of short reviews.

A review is a neutral opening (the prompt), then two opinion sentences and a closing (the
response). Symbols that end in `+` or `-` make positive or negative text. The opening says what
is reviewed, and the opinions are about parts of that, in words that suit the part. Both halves
of a sentence are written in the same mood; a mixture is grammatical too.
"""

from __future__ import annotations

Rules = dict[str, tuple[str, ...]]
"""Symbol → alternatives; an alternative is text with other symbols in braces."""

KINDS = ("restaurant", "hotel", "film")

_NEUTRAL: Rules = {
    "who": ("We", "I", "My wife and I", "My friends and I", "The two of us", "Our group"),
    "place": (
        "by the river",
        "in the old town",
        "near the station",
        "on the hill",
        "at the harbour",
        "behind the church",
    ),
    "opening.restaurant": (
        "{who} had dinner at the {cuisine} restaurant {place}.",
        "{who} ate at the {cuisine} place {place}.",
    ),
    "cuisine": ("little", "Greek", "Indian", "new", "French", "Thai"),
    "opening.hotel": (
        "{who} stayed at the {house} {place}.",
        "{who} spent two nights at the {house} {place}.",
    ),
    "house": ("hotel", "small hotel", "guest house", "inn", "hostel", "grand hotel"),
    "opening.film": (
        "{who} saw the {genre} about {subject}.",
        "{who} watched a {genre} about {subject}.",
    ),
    "genre": ("film", "new film", "old film", "comedy", "drama", "thriller"),
    "subject": ("two brothers", "a thief", "the war", "a lost dog", "the sea", "a young doctor"),
    "adverb": ("", "really ", "truly ", "quite ", "so "),
    "judge": ("We", "I", "We all"),
}

_PARTS: dict[str, tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = {
    "restaurant": (
        ("food", ("soup", "fish", "bread"), ("desserts", "noodles")),
        ("staff", ("waiter", "owner", "chef"), ("waiters", "cooks")),
    ),
    "hotel": (
        ("room", ("room", "bed", "pool"), ("towels", "windows")),
        ("staff", ("porter", "owner", "manager"), ("waiters", "cleaners")),
    ),
    "film": (
        ("story", ("plot", "ending", "script"), ("jokes", "scenes")),
        ("cast", ("hero", "villain", "choir"), ("actors", "singers")),
    ),
}

JUDGEMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "food": {
        "+": ("delicious", "fresh", "tasty", "excellent"),
        "-": ("bland", "stale", "awful", "tasteless"),
    },
    "staff": {
        "+": ("friendly", "kind", "helpful", "attentive"),
        "-": ("rude", "slow", "careless", "lazy"),
    },
    "room": {
        "+": ("lovely", "spotless", "beautiful", "elegant"),
        "-": ("dirty", "dreary", "ugly", "shabby"),
    },
    "story": {
        "+": ("clever", "moving", "gripping", "original"),
        "-": ("dull", "silly", "confusing", "predictable"),
    },
    "cast": {
        "+": ("brilliant", "convincing", "charming", "superb"),
        "-": ("wooden", "terrible", "annoying", "lifeless"),
    },
}

VERBS = {
    "+": ("loved", "enjoyed", "liked", "admired"),
    "-": ("hated", "disliked", "regretted", "could not stand"),
}

CLOSINGS = {
    "+": (
        " I would gladly come again.",
        " Highly recommended.",
        " It was a joy.",
        " Well worth the money.",
        " A perfect evening.",
        " We left happy.",
    ),
    "-": (
        " I would never come again.",
        " Not recommended.",
        " It was a shame.",
        " A waste of money.",
        " A ruined evening.",
        " We left angry.",
    ),
}


def _rules() -> Rules:
    """All symbols; those of one kind of review carry its name: `sentence.film+`."""
    rules = dict(_NEUTRAL)
    for part, moods in JUDGEMENTS.items():
        rules |= {f"{part}{mood}": words for mood, words in moods.items()}
    for kind, parts in _PARTS.items():
        for part, one, many in parts:
            rules[f"{kind}.{part}.one"], rules[f"{kind}.{part}.many"] = one, many
        rules[f"part.{kind}"] = tuple(x for _, one, many in parts for x in one + many)
        for mood in "+-":
            rules |= _opinions(kind, mood)
    for mood in "+-":
        rules[f"verb{mood}"], rules[f"closing{mood}"] = VERBS[mood], CLOSINGS[mood]
    return rules


def _opinions(kind: str, mood: str) -> Rules:
    parts = [part for part, *_ in _PARTS[kind]]
    pairs = [(one, two) for one in parts for two in parts if one != two]
    rules: Rules = {
        f"clause.{kind}.{part}{mood}": (
            f"{{{kind}.{part}.one}} was {{adverb}}{{{part}{mood}}}",
            f"{{{kind}.{part}.many}} were {{adverb}}{{{part}{mood}}}",
        )
        for part in parts
    }
    rules[f"clause.{kind}{mood}"] = tuple(f"{{clause.{kind}.{part}{mood}}}" for part in parts)
    for other in "+-":
        rules[f"both.{kind}{mood}{other}"] = tuple(
            f" The {{clause.{kind}.{one}{mood}}}, and the {{clause.{kind}.{two}{other}}}."
            for one, two in pairs
        )
    rules[f"sentence.{kind}{mood}"] = (
        f" The {{clause.{kind}{mood}}}.",
        f" {{judge}} {{verb{mood}}} the {{part.{kind}}}.",
        f"{{both.{kind}{mood}{mood}}}",
    )
    return rules


RULES = _rules()
