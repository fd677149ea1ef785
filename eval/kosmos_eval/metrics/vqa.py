"""VQA accuracy (Antol et al. 2015; Goyal et al. 2017) with the official answer normalisation.

Two rules exist in the field and differ by up to 20 points on OCR-like data, so a result names the one it used:

* ``official``: what the published evaluation code does. Answers are normalised only if the ten annotators do not all
  agree; a prediction "Yes." scores 0 when all ten wrote "yes".
* ``lenient``: what the ports in OpenFlamingo and lmms-eval do: prediction and answers are always normalised.

An answer counts 1/3 for each *other* annotator who gave it, at most 1, averaged over leaving each annotator out.
Differs from the official code where annotations lack ``answer_id``: there, equal answers are lost and scores are far
too low (seen in published VizWiz files); here an annotator is an entry of the list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

RULES = ("official", "lenient")

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# A full stop goes unless a digit follows. The official call passes re.UNICODE (32) in the place of `count`.
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_NUMBER_WORDS = {
    word: str(value)
    for value, words in enumerate(
        ["none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
    for word in words.split()
}
_ARTICLES = frozenset(["a", "an", "the"])
# Contracted forms; the key of each is the form with one apostrophe left out ("dont", "couldnt've", "couldn'tve").
_CONTRACTED = """\
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""


def _contractions() -> dict[str, str]:
    table = {"somebody'd": "somebodyd"}  # reversed in the official table
    for form in _CONTRACTED.split():
        for place, character in enumerate(form):
            if character == "'":
                table[form[:place] + form[place + 1 :]] = form
    return table


_CONTRACTIONS = _contractions()


def strip_punctuation(answer: str) -> str:
    """Punctuation becomes nothing where it touches a blank (or a number has a comma), else a blank; full stops go."""
    delete_all = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        touches_blank = mark + " " in answer or " " + mark in answer
        text = text.replace(mark, "" if delete_all or touches_blank else " ")
    return _PERIOD.sub("", text, count=_MAX_PERIODS)


def normalise_words(answer: str) -> str:
    """Lower case, number words to digits, articles dropped, contractions given their apostrophe."""
    words = (_NUMBER_WORDS.get(word, word) for word in answer.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalise(answer: str) -> str:
    """The official normalisation of one answer."""
    return normalise_words(strip_punctuation(answer))


def vqa_accuracy(prediction: str, answers: Sequence[str], rule: str = "official") -> float:
    """Accuracy in [0, 1] of one prediction against all annotators' answers (usually ten).

    Raises:
        ValueError: no answers, or an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"unknown VQA rule {rule!r}; choose one of {', '.join(RULES)}")
    if not answers:
        raise ValueError("a question has no answers: VQA accuracy needs the annotators' answers")
    prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
    if rule == "lenient" or len(set(answers)) > 1:
        prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    if len(answers) == 1:  # a data set with one answer per question (easy-VQA) has nobody to leave out
        return float(prediction == answers[0])
    matches = sum(answer == prediction for answer in answers)
    left_out = [min(1.0, (matches - (answer == prediction)) / 3) for answer in answers]
    return sum(left_out) / len(left_out)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
