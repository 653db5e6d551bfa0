"""Products and queries: the schema, the reader that joins them, and a small catalogue drawn for demos and tests."""

from .reader import ProductQueries, join, load_product_queries, load_products, load_queries
from .schema import (
    OPTIONAL_PRODUCT_FEATURES,
    OPTIONAL_QUERY_FEATURES,
    PRODUCT_FEATURES,
    QUERY_FEATURES,
    SchemaError,
    normalise_title,
    validate_products,
    validate_queries,
)

__all__ = [
    "OPTIONAL_PRODUCT_FEATURES",
    "OPTIONAL_QUERY_FEATURES",
    "PRODUCT_FEATURES",
    "QUERY_FEATURES",
    "ProductQueries",
    "SchemaError",
    "join",
    "load_product_queries",
    "load_products",
    "load_queries",
    "normalise_title",
    "validate_products",
    "validate_queries",
]
