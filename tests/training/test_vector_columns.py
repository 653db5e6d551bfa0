from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from moon2_training.vector_columns import (
    VECTOR_COLUMNS,
    encoded_digest,
    picture_digest,
    vector_array,
    vector_column,
)


def test_columns_are_named_after_views():
    assert VECTOR_COLUMNS == ("text_vector", "image_vector", "multimodal_vector")
    with pytest.raises(ValueError, match="choose one of text, image, multimodal"):
        vector_column("title")


def test_a_digest_changes_with_title_and_pictures_and_their_order():
    front, back = picture_digest(b"front"), picture_digest(b"back")
    pictures = ([], [front], [back], [front, back], [back, front], [front, front])
    digests = {encoded_digest(title, given) for title in ("", "mug", "mug ") for given in pictures}
    assert len(digests) == 18 and {len(digest) for digest in digests} == {16}
    assert encoded_digest("mug", (front,)) == encoded_digest("mug", [front])


def test_vectors_become_lists_of_one_size_and_null_where_absent():
    vectors = np.arange(6, dtype=np.float64).reshape(3, 2) / 7
    array = vector_array(vectors, np.array([True, False, True]), pa.float16())
    assert array.type == pa.list_(pa.float16(), 2)
    assert array[1].as_py() is None
    np.testing.assert_array_equal(np.array(array[2].as_py(), np.float16), vectors[2].astype(np.float16))
    assert vector_array(vectors, np.ones(3)).type == pa.list_(pa.float32(), 2)
    assert len(vector_array(vectors[:0], np.ones(0))) == 0
