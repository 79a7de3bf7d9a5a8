"""Text embedders, for strategies that compare candidates by similarity; see :func:`open_embedder`."""

from __future__ import annotations

from vbon.embedders.protocol import Embedder
from vbon.errors import InvalidInputError


def open_embedder(spec: str) -> Embedder:
    """The embedder that a configuration string names; it loads its model at the first use.

    Args:
        spec: ``ngrams``; ``sentences:MODEL`` for a model of sentence-transformers; ``hidden:DIR`` for the
            mean-pooled last hidden states of a causal language model.

    Raises:
        InvalidInputError: the string has another form.
    """
    kind, _, argument = spec.partition(":")
    if kind == "ngrams" and not argument:
        from vbon.embedders.ngrams import NgramEmbedder

        return NgramEmbedder()
    if kind == "sentences" and argument:
        from vbon.embedders.sentences import SentenceEmbedder

        return SentenceEmbedder(argument)
    if kind == "hidden" and argument:
        from vbon.embedders.hidden import HiddenStateEmbedder

        return HiddenStateEmbedder(argument)
    raise InvalidInputError(
        f"embedder {spec!r} is unknown; use ngrams, sentences:MODEL or hidden:DIR", field="embedder"
    )


__all__ = ["Embedder", "open_embedder"]
