"""The identity of an embedder: what stored vectors are told apart by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EmbedderIdentity:
    """Provider, model and dimensions, which make up the vector of a stored text, and the projection of queries.

    Args:
        model: the name of the model; empty where the provider has one alone.
        projection: a digest of the projection; empty for none.
    """

    provider: str
    model: str
    dimensions: int
    projection: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.provider, self.model, f"({self.dimensions} dimensions)")))

    def same_vectors(self, other: EmbedderIdentity) -> bool:
        """Whether both give stored texts the same vectors, by their names: the projection is of queries alone."""
        return (self.provider, self.model, self.dimensions) == (other.provider, other.model, other.dimensions)
