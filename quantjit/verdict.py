"""What a result means, in words: every threshold, the verdict, and what to try.

Nothing here computes a result; what is printed and what the page says come from here.

===================  ==============  ============  ===============================================
judged by            close to float  usable        where
===================  ==============  ============  ===============================================
top-1 lost           at most 1 %     at most 3 %   labels, `MANY_IMAGES` inputs or more
top-1 agreement      97 % or more    90 % or more  `MANY_IMAGES` inputs or more
SQNR at the outputs  25 dB or more   15 dB or more  else
===================  ==============  ============  ===============================================

With labels the agreement counts too where so few inputs cannot tell a loss of 1 % from chance:
where the standard error, at most sqrt((1 - agreement) / inputs), is larger.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantjit.convergence import LEAST_INPUTS, STABLE_SHARE, TOLERANCE, Convergence
from quantjit.metrics import Comparison, NodeError
from quantjit.quantizer import PASSES, Settings

GOOD_SQNR, FAIR_SQNR = 25.0, 15.0
"""dB at the outputs: above the first int8 is hard to tell from float, below the second it shows."""

GOOD_AGREEMENT, FAIR_AGREEMENT = 0.97, 0.9
"""Share of the inputs with the same top-1."""

GOOD_LOSS, FAIR_LOSS = 0.01, 0.03
"""Share of the inputs that int8 gets wrong beyond those of float."""

MANY_IMAGES = 100
"""Inputs from which on a share of them is worth more than SQNR."""

FEW_IMAGES = 50
"""Calibration inputs that TNN's own documentation asks for at least."""

HEAVY_NOISE, POOR_NOISE = 10 ** (-GOOD_SQNR / 20), 10 ** (-FAIR_SQNR / 20)
"""Noise that a layer adds over its signal (RMS): so much alone leaves GOOD_SQNR, FAIR_SQNR."""

_ROUNDING = 1e-9  # of shares that are differences
_DOUBT = 0.9  # entropy over that of a uniform softmax from which the preprocessing is doubted
_RARELY_RIGHT = 0.1  # top-1 of float under which the preprocessing is doubted

GRADES = ("close to float", "usable, check it on your own metric", "poor: do not ship it")
"""What is said of a result, by its grade."""

_WORDS = ("close to float", "usable", "poor")


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the questions that a result has to answer.

    grade: 0 good, 1 fair, 2 poor, None where it cannot be told.  short: a few words; text: one
    sentence with its number.
    """

    question: str
    grade: int | None
    short: str
    text: str


def verdict(comparison: Comparison) -> str:
    """Return SQNR, agreement and what they mean, in words."""
    agreement = comparison.agreement
    same = "" if agreement is None else f", top-1 agreement {agreement:.1%}"
    return f"SQNR {comparison.sqnr:.1f} dB{same}: {GRADES[grade(comparison)]}"


def grade(comparison: Comparison) -> int:
    """Return 0 good, 1 fair, 2 poor, by what says most: top-1, agreement, else SQNR."""
    agreement = comparison.agreement
    float_top1, int8_top1 = comparison.float_top1, comparison.int8_top1
    if comparison.images < MANY_IMAGES or agreement is None:
        return _grade(comparison.sqnr, GOOD_SQNR, FAIR_SQNR)
    same = _grade(agreement, GOOD_AGREEMENT, FAIR_AGREEMENT)
    if float_top1 is None or int8_top1 is None:
        return same
    right = _grade(int8_top1 - float_top1, -GOOD_LOSS, -FAIR_LOSS)
    chance = math.sqrt((1 - agreement) / comparison.images)
    return right if chance <= GOOD_LOSS else max(right, same)


def _grade(found: float, good: float, fair: float) -> int:
    return int(found + _ROUNDING < good) + int(found + _ROUNDING < fair)


def rules() -> tuple[tuple[str, str], ...]:
    """Return the thresholds in words: what they decide, and which they are."""
    return (
        (
            "Safe to ship",
            f"with labels and {MANY_IMAGES} compared inputs: at most {GOOD_LOSS:.0%} of them lost "
            f"against float (usable: {FAIR_LOSS:.0%}); without labels: the same top-1 for "
            f"{GOOD_AGREEMENT:.0%} ({FAIR_AGREEMENT:.0%}), which counts with labels too where so "
            f"few inputs cannot tell {GOOD_LOSS:.0%} from chance; else {GOOD_SQNR:g} dB SQNR at "
            f"the outputs ({FAIR_SQNR:g})",
        ),
        (
            "Worst layer",
            f"the int8 layer that adds the most noise; more than {HEAVY_NOISE:.1%} of its signal, "
            f"which alone leaves {GOOD_SQNR:g} dB, are worth a look ({POOR_NOISE:.0%}: "
            f"{FAIR_SQNR:g} dB)",
        ),
        (
            "Enough images",
            f"the scales of {STABLE_SHARE:.0%} of the blobs move by less than "
            f"{100 * TOLERANCE:.3g} % while the inputs double, of which there are {LEAST_INPUTS} "
            "at least",
        ),
    )


def heavy_nodes(comparison: Comparison, count: int = 3) -> list[NodeError]:
    """Return the layers that would be the first to stay float: they add much noise."""
    return [node for node in comparison.worst(count) if node.noise > HEAVY_NOISE]


def remedies(
    comparison: Comparison,
    settings: Settings | None,
    images: int,
    convergence: Convergence | None = None,
    *,
    is_tuned: bool = False,
) -> list[str]:
    """Return what to try, the most promising first; empty when there is nothing to mend.

    settings: None where they are not known.  images: inputs of the calibration.  is_tuned: whether
    other settings were tried already.
    """
    advice: list[str] = []
    warning = preprocessing_warning(comparison)
    if warning:
        advice.append(warning)
    if grade(comparison):
        if settings is not None and not is_tuned:
            advice += _other_settings(settings)
        if not is_tuned:
            advice.append("measure what suits this network best: quantjit tune")
        heavy = heavy_nodes(comparison)
        if heavy:
            names = ",".join(node.name for node in heavy)
            total = sum(node.macs for node in comparison.nodes)
            share = sum(node.macs for node in heavy) / total if total else 0.0
            advice.append(
                f"keep the worst layers in float: --exclude {names} ({share:.1%} of the MACs)"
            )
    if images < FEW_IMAGES:
        advice.append(f"calibrate on more inputs: {images} are few, 50 to 500 are usual")
    elif grade(comparison) and convergence is not None and not convergence.is_stable():
        advice.append(
            f"calibrate on more inputs: the scales still moved at {images}, try {2 * images}"
        )
    return advice


def _other_settings(settings: Settings) -> list[str]:
    advice = []
    if settings.merge == "tensor":
        advice.append("give weights a scale per channel: -t 1")
    if settings.compat:
        advice.append("leave out --compat tnn")
    elif set(settings.passes) != set(PASSES):
        advice.append(
            f"try the passes: --passes all ({', '.join(PASSES)}; each kept only where it helps)"
        )
    if "mse" not in (settings.blob_method, settings.weight_method) and not settings.compat:
        advice.append("choose steps by least squared error: -b mse -w mse")
    if settings.merge == "mix" and settings.target == "tnn":
        advice.append("compare with a scale per channel for blobs too: -t 0")
    return advice


def preprocessing_warning(comparison: Comparison) -> str:
    """Return what to check where the float network's own outputs look wrong, else ""."""
    limit = _RARELY_RIGHT if comparison.images >= FEW_IMAGES else 0.0
    if comparison.float_top1 is not None and comparison.float_top1 < limit:
        return (
            "the float network itself is hardly right: check --preset or -n, -s, -r, --resize, and "
            "the labels"
        )
    if comparison.doubt is not None and comparison.doubt > _DOUBT:
        return (
            "the float network can hardly tell the inputs apart (its softmax is nearly uniform): "
            "check the preprocessing, --preset or -n, -s, -r, --resize"
        )
    return ""


# ------------------------------------------------------------------ the four questions


def answers(
    comparison: Comparison | None,
    settings: Settings | None,
    images: int,
    convergence: Convergence | None,
    *,
    is_tuned: bool = False,
) -> tuple[Answer, ...]:
    """Answer what everybody asks of a result, each in one sentence with its number.

    See `remedies` for what is given.
    """
    return (
        _is_safe(comparison),
        _worst_layer(comparison),
        _what_to_try(comparison, settings, images, convergence, is_tuned=is_tuned),
        enough_images(convergence, images),
    )


def _is_safe(comparison: Comparison | None) -> Answer:
    question = "Is it safe to ship?"
    if comparison is None:
        return Answer(question, None, "Not known", "Nothing was compared: give inputs with -i.")
    found = grade(comparison)
    short = ("Yes", "Perhaps: check your own metric", "No")[found]
    facts = f"{comparison.sqnr:.1f} dB SQNR at the outputs"
    if comparison.agreement is not None:
        facts += f" and the same top-1 for {comparison.agreement:.1%}"
    facts += f" of {_count(comparison.images, 'input')}"
    if comparison.float_top1 is not None and comparison.int8_top1 is not None:
        facts += f" (right: float {comparison.float_top1:.2%}, int8 {comparison.int8_top1:.2%})"
    few = "; with so few inputs SQNR decides" if comparison.images < MANY_IMAGES else ""
    return Answer(question, found, short, f"Int8 is {_WORDS[found]}: {facts}{few}.")


def _worst_layer(comparison: Comparison | None) -> Answer:
    question = "Which layer is worst?"
    worst = [] if comparison is None else comparison.worst(1)
    if not worst:
        return Answer(question, None, "Not known", "No int8 layer was compared.")
    node = worst[0]
    after, before = node.error.sqnr, node.error.sqnr + node.lost
    found = int(node.noise > HEAVY_NOISE) + int(node.noise > POOR_NOISE)
    text = (
        f"This {node.op.replace('_', ' ')} adds the most noise, {node.noise:.1%} of its signal: "
        f"from {before:.1f} to {after:.1f} dB SQNR."
    )
    return Answer(question, found, node.name, text)


def _what_to_try(
    comparison: Comparison | None,
    settings: Settings | None,
    images: int,
    convergence: Convergence | None,
    *,
    is_tuned: bool,
) -> Answer:
    question = "What should I try?"
    if comparison is None:
        return Answer(question, None, "Verify it", "Compare it with float on inputs: -i FOLDER.")
    advice = remedies(comparison, settings, images, convergence, is_tuned=is_tuned)
    found = grade(comparison)
    if not advice:
        text = f"Int8 is {_WORDS[found]}, at {comparison.sqnr:.1f} dB SQNR."
        return Answer(question, 0, "Nothing more", text)
    more = f" {_count(len(advice) - 1, 'more idea')} below." if len(advice) > 1 else ""
    short, _, _ = advice[0].partition(":")
    return Answer(
        question, max(found, 1), short[:1].upper() + short[1:], f"{_sentence(advice[0])}{more}"
    )


def enough_images(convergence: Convergence | None, images: int) -> Answer:
    """Answer how many calibration inputs are enough."""
    question = "How many images are enough?"
    if convergence is None or convergence.doubling() is None or images < LEAST_INPUTS:
        known = f"{_count(images, 'input')} went in, 50 to 500 are usual"
        why = (
            f"under {LEAST_INPUTS} nothing can be said"
            if images < LEAST_INPUTS
            else ("how the scales moved meanwhile is not known")
        )
        bad = 1 if images < LEAST_INPUTS else None
        return Answer(
            question, bad, f"More than {images}" if bad else "Not known", f"{known}; {why}."
        )
    total, last = len(convergence.scales), convergence.inputs[-1]
    limit = f"{100 * TOLERANCE:.3g} %"
    moving = convergence.moving()
    first, _ = (convergence.inputs[place] for place in convergence.doubling() or (0, 0))
    if convergence.is_stable():
        least = next(
            count
            for count in convergence.inputs
            if count >= LEAST_INPUTS and convergence.settled(count) >= STABLE_SHARE * total
        )
        return Answer(
            question,
            0,
            f"{least} are",
            f"At {least} inputs the scales of {convergence.settled(least)} of {total} blobs were "
            f"within {limit} of those of all {last}.",
        )
    worst, move = next(iter(moving.items()))
    return Answer(
        question,
        1,
        f"More than {last}",
        f"From {first} to {last} inputs {len(moving)} of {total} scales still moved by {limit} or "
        f"more, {worst} by {100 * move:.1f} %: try {2 * last}.",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def listed(lines: Sequence[str]) -> list[str]:
    """Return advice as sentences."""
    return [_sentence(line) for line in lines]
