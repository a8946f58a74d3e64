"""BM25 (Robertson & Zaragoza 2009), the lexical baseline, exact and in memory."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS


def terms(text: str) -> list[str]:
    """Lower-cased words and numbers without stop words; a plural s goes."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words
            if word not in ENGLISH_STOP_WORDS]  # fmt: skip


class BM25:
    """k1 and b as in Anserini's MS MARCO baseline; idf = ln(1 + (N - n + 0.5) / (n + 0.5))."""

    def __init__(self, documents: Sequence[str], k1: float = 0.9, b: float = 0.4) -> None:
        counted = [Counter(terms(document)) for document in documents]
        self.vocabulary = {term: i for i, term in enumerate(sorted({t for count in counted for t in count}))}
        lengths = np.array([sum(count.values()) for count in counted], dtype=np.float64)
        frequency = self._matrix(counted)
        present = np.bincount(frequency.indices, minlength=len(self.vocabulary))
        idf = np.log1p((len(documents) - present + 0.5) / (present + 0.5))
        norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-9))
        saturated = frequency.copy()
        saturated.data = saturated.data / (saturated.data + np.repeat(norm, np.diff(frequency.indptr)))
        self.weights = saturated.multiply(idf[None, :]).tocsr()

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """(Q, N) float64: sum over the query's terms (as often as it has them) of the document's weights."""
        return (self._matrix([Counter(terms(query)) for query in queries]) @ self.weights.T).toarray()

    def _matrix(self, counted: Sequence[Counter[str]]) -> csr_matrix:
        rows = [[(self.vocabulary[t], n) for t, n in count.items() if t in self.vocabulary] for count in counted]
        ends = np.cumsum([0, *map(len, rows)])
        columns, values = (
            np.array([pair[i] for row in rows for pair in row], dtype=t) for i, t in ((0, np.int64), (1, np.float64))
        )
        return csr_matrix((values, columns, ends), shape=(len(rows), len(self.vocabulary)))
