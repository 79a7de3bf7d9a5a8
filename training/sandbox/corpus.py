"""The embedded movie-review corpus: text made by a small stochastic grammar.

Every review has a hidden satisfaction ``z ~ N(0, 1)``. Each sentence speaks of one aspect of the
film with its own hidden feeling, correlated with ``z``; wording (adjective, intensifier, negation,
contrast) is drawn given that feeling, so the same feeling has many wordings and one wording many
feelings. Labels come from two simulated annotators who saw the hidden feelings, never the text:
each weighs the aspects differently, remembers the ending of a review best, and errs. No rule over
the text recovers a label, and the two annotators disagree, which is what makes a reward trained on
one differ from a gold reward trained on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Annotator = Literal["proxy", "gold"]
# Draws an aspect not yet spoken of and the feeling about it.
Feel = Callable[[], tuple[str, float]]

# Words by felt strength, weakest first; the sign is the list's name.
PRAISE: dict[str, tuple[tuple[str, ...], ...]] = {
    "acting": (("decent", "capable"), ("convincing", "heartfelt"), ("superb", "unforgettable")),
    "story": (("tidy", "agreeable"), ("gripping", "clever"), ("astonishing", "masterful")),
    "pacing": (("steady", "even"), ("brisk", "assured"), ("electrifying", "flawless")),
    "music": (("pleasant", "fitting"), ("lovely", "stirring"), ("ravishing", "sublime")),
    "photography": (("neat", "clean"), ("handsome", "elegant"), ("breathtaking", "gorgeous")),
    "dialogue": (("passable", "easy"), ("witty", "sharp"), ("dazzling", "brilliant")),
    "ending": (("fair", "sensible"), ("moving", "satisfying"), ("devastating", "perfect")),
    "humour": (("mild", "amiable"), ("funny", "warm"), ("hilarious", "inspired")),
}
BLAME: dict[str, tuple[tuple[str, ...], ...]] = {
    "acting": (("uneven", "stiff"), ("wooden", "unconvincing"), ("dreadful", "embarrassing")),
    "story": (("thin", "familiar"), ("muddled", "predictable"), ("idiotic", "incoherent")),
    "pacing": (("slow", "patchy"), ("sluggish", "clumsy"), ("unbearable", "glacial")),
    "music": (("bland", "plain"), ("grating", "intrusive"), ("deafening", "hideous")),
    "photography": (("flat", "murky"), ("drab", "careless"), ("ugly", "amateurish")),
    "dialogue": (("awkward", "dry"), ("leaden", "corny"), ("laughable", "atrocious")),
    "ending": (("abrupt", "hurried"), ("unearned", "hollow"), ("insulting", "disastrous")),
    "humour": (("gentle", "faint"), ("forced", "stale"), ("painful", "witless")),
}
ASPECTS = tuple(PRAISE)
ASPECT_NAMES: dict[str, tuple[str, ...]] = {
    "acting": ("the acting", "the cast", "the lead performance", "every performance"),
    "story": ("the story", "the plot", "the script"),
    "pacing": ("the pacing", "the editing", "the rhythm of it"),
    "music": ("the music", "the score", "the soundtrack"),
    "photography": ("the photography", "the camera work", "the lighting"),
    "dialogue": ("the dialogue", "the writing", "each conversation"),
    "ending": ("the ending", "the last act", "the final scene"),
    "humour": ("the humour", "the comedy in it", "the joking"),
}
# Hidden weights: the gold annotator cares about craft, the proxy annotator about entertainment.
ASPECT_WEIGHTS: dict[Annotator, dict[str, float]] = {
    "proxy": {"acting": 1.0, "story": 1.1, "pacing": 1.2, "music": 0.7, "photography": 0.7,
              "dialogue": 0.9, "ending": 1.1, "humour": 1.3},
    "gold": {"acting": 1.2, "story": 1.3, "pacing": 0.8, "music": 0.9, "photography": 1.0,
             "dialogue": 1.1, "ending": 1.1, "humour": 0.6},
}  # fmt: skip
STRONG = ("truly", "utterly", "simply", "absolutely", "completely")
MIDDLE = ("really", "very", "quite", "rather")
HEDGES = ("somewhat", "fairly", "mostly", "a little", "more or less")

DETERMINERS = ("the", "this", "another", "their first", "her latest", "his second", "that")
AGES = ("", "", "new", "old", "recent", "forgotten", "low budget", "much discussed", "three hour")
ORIGINS = ("", "", "french", "korean", "brazilian", "danish", "indian", "polish", "mexican")
GENRES = ("film", "movie", "film", "movie", "thriller", "comedy", "drama", "western", "romance",
          "documentary", "musical",
          "horror film", "heist movie", "road movie", "war film")  # fmt: skip
MAKERS = ("", "", "", "from marta okafor", "by lena brandt", "with idris novak", "by joon park",
          "from the studio", "about two sisters", "about a lost dog", "set in lisbon",
          "set in winter", "with a huge cast", "about a chess champion",
          "by a first time director")  # fmt: skip
SITUATIONS = ("on a rainy sunday", "with my brother", "at a late show", "on the plane", "last week",
              "at the festival", "after a long day", "with no expectations",
              "for the third time")  # fmt: skip
FACTS = ("it runs for almost two hours", "my neighbour fell asleep", "we sat in the front row",
         "the cinema was half empty", "it is based on a novel", "i had read the book before",
         "the sequel comes out next year", "subtitles were hard to read", "it was shot in one town",
         "the poster shows a lighthouse", "we talked about it on the way home")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Review:
    """One review with the labels that each annotator gave it.

    Attributes:
        text: lower-case prose of two to five sentences.
        labels: 1 (liked) or 0 per annotator; noisy, and not a function of ``text``.
    """

    text: str
    labels: dict[Annotator, int]


class ReviewGrammar:
    """Draws reviews; two grammars with the same seed draw the same reviews."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def reviews(self, count: int) -> list[Review]:
        """The next ``count`` reviews."""
        return [self._review() for _ in range(count)]

    def _pick(self, options: tuple[str, ...]) -> str:
        return options[int(self._rng.integers(len(options)))]

    def _chance(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)

    def _review(self) -> Review:
        satisfaction = float(self._rng.normal())
        num_sentences = int(self._rng.choice([2, 3, 4, 5], p=[0.25, 0.35, 0.25, 0.15]))
        aspects = [str(a) for a in self._rng.permutation(ASPECTS)]
        felt: list[tuple[str, float]] = []

        def feel() -> tuple[str, float]:
            aspect = aspects.pop()
            feeling = 0.75 * satisfaction + 0.75 * float(self._rng.normal())
            felt.append((aspect, feeling))
            return aspect, feeling

        sentences = [self._opening(feel)]
        for _ in range(num_sentences - 2):
            sentences.append(self._middle(feel))
        sentences.append(self._closing(satisfaction, feel))
        labels: dict[Annotator, int] = {
            annotator: self._label(annotator, satisfaction, felt) for annotator in ASPECT_WEIGHTS
        }
        return Review(" ".join(sentences), labels)

    def _label(
        self, annotator: Annotator, satisfaction: float, felt: list[tuple[str, float]]
    ) -> int:
        weights = ASPECT_WEIGHTS[annotator]
        recency = np.linspace(0.7, 1.3, len(felt)) if felt else np.ones(0)
        score = 0.6 * satisfaction + sum(
            weights[aspect] * feeling * float(when)
            for (aspect, feeling), when in zip(felt, recency, strict=True)
        ) / max(1, len(felt))
        return int(score + 0.5 * float(self._rng.normal()) > 0)

    def _subject(self) -> str:
        if self._chance(0.2):
            return self._pick(("the film", "the movie", "this film", "this movie", "it all"))
        words = (self._pick(DETERMINERS), self._pick(AGES), self._pick(ORIGINS),
                 self._pick(GENRES), self._pick(MAKERS))  # fmt: skip
        return " ".join(word for word in words if word)

    def _verdict(self, aspect: str, feeling: float) -> str:
        """A predicate such as ``utterly wooden`` or ``never dull`` for a feeling of any sign."""
        praise, blame = PRAISE[aspect], BLAME[aspect]
        own, other = (praise, blame) if feeling > 0 else (blame, praise)
        strength = abs(feeling) + 0.25 * float(self._rng.normal())
        level = 0 if strength < 0.45 else 1 if strength < 1.1 else 2
        if self._chance(0.22):  # negate a word of the other side: weaker than praise itself
            return f"{self._pick(('not', 'never', 'hardly', 'not exactly'))} {self._pick(other[1])}"
        word = self._pick(own[level])
        if level == 0 and self._chance(0.5):
            return f"{self._pick(HEDGES)} {word}"
        if level == 1 and self._chance(0.3):
            return f"{self._pick(MIDDLE)} {word}"
        if level == 2 and self._chance(0.5):
            return f"{self._pick(STRONG)} {word}"
        return word

    def _claim(self, aspect: str, feeling: float) -> str:
        name = self._pick(ASPECT_NAMES[aspect])
        frame = self._pick(("{n} is {v}", "{n} was {v}", "i found {n} {v}", "{n} felt {v}"))
        return frame.format(n=name, v=self._verdict(aspect, feeling))

    def _opening(self, feel: Feel) -> str:
        subject, (aspect, feeling) = self._subject(), feel()
        verdict = self._verdict(aspect, feeling)
        frame = int(self._rng.integers(6))
        if frame == 0:
            return f"{subject} was {self._verdict(aspect, feeling)} and {self._claim(aspect, feeling)}."
        if frame == 1:
            return (
                f"i watched {subject} {self._pick(SITUATIONS)} and {self._claim(aspect, feeling)}."
            )
        if frame == 2:
            return f"{subject} is {verdict}."
        if frame == 3:
            return f"in {subject} {self._claim(aspect, feeling)}."
        if frame == 4:
            return f"what i remember of {subject} is that {self._claim(aspect, feeling)}."
        return f"{subject} was {verdict}, {self._pick(('i thought', 'to my mind', 'in short'))}."

    def _middle(self, feel: Feel) -> str:
        frame = int(self._rng.integers(6))
        if frame == 0:
            return f"{self._pick(FACTS)}."
        first = self._claim(*feel())
        if frame == 1:
            second = self._claim(*feel())
            return f"{first}, but {second}."
        if frame == 2:
            return f"{self._pick(('also', 'then again', 'to be fair', 'still'))} {first}."
        if frame == 3:
            return f"although {self._pick(FACTS)}, {first}."
        if frame == 4:
            return f"{first} and {self._claim(*feel())}."
        return f"{first}."

    def _closing(self, satisfaction: float, feel: Feel) -> str:
        mood = satisfaction + 0.5 * float(self._rng.normal())
        if self._chance(0.3):
            return f"in the end {self._claim(*feel())}."
        if mood > 1.0:
            options = ("i would see it again tomorrow.", "it deserves every prize.",
                       "i loved it.", "go and see it at once.")  # fmt: skip
        elif mood > 0.0:
            options = ("i am glad i went.", "it is worth a ticket.", "i would not mind a sequel.",
                       "a good evening all in all.")  # fmt: skip
        elif mood > -1.0:
            options = ("i would not see it twice.", "it is not worth a ticket.",
                       "i expected more.", "wait until it is on television.")  # fmt: skip
        else:
            options = ("i want my money back.", "i hated it.", "avoid it at all costs.",
                       "i left before the credits.")  # fmt: skip
        return self._pick(options)
