"""Names for behaviors that were found without labels: the words their sentences tend to open with."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lm_eval_hybrid.behaviors.manifest import Behavior

EXAMPLES = 3
_WORD = re.compile(r"[A-Za-z]+")


def name(sentences: Sequence[str], codes: Tensor) -> tuple[Behavior, ...]:
    """One behavior for each latent that is the strongest for some sentence.

    Args:
        codes: [sentences, latents], how strongly each latent answers to each sentence.
    """
    strongest = codes.argmax(-1)
    behaviors: list[Behavior] = []
    for latent in strongest.unique().tolist():
        members = (strongest == latent).nonzero()[:, 0]
        texts = [sentences[i].strip() for i in members.tolist()]
        opening = _opening(texts)
        key = "-".join(opening).lower() or f"latent-{latent}"
        if key in {behavior.key for behavior in behaviors}:
            key = f"{key}-{latent}"
        best = members[torch.argsort(codes[members, latent], descending=True, stable=True)].tolist()
        examples = tuple(dict.fromkeys(sentences[i].strip() for i in best))[:EXAMPLES]
        share = len(texts) / len(sentences)
        behaviors.append(
            Behavior(
                key=key,
                latent=latent,
                title=" ".join(opening).capitalize() or f"Latent {latent}",
                description=f"{share:.1%} of the sentences; named after the words that most of them open with.",
                examples=examples,
                tensor=f"vector.{key}",
            )
        )
    return tuple(behaviors)


def _opening(texts: Sequence[str]) -> tuple[str, ...]:
    """The first two words of most texts, or the first, or those of the greatest number."""
    words = [tuple(_WORD.findall(text)[:2]) for text in texts]
    pair, count = Counter(words).most_common(1)[0]
    if 2 * count > len(texts):
        return pair
    return Counter(w[:1] for w in words).most_common(1)[0][0]
