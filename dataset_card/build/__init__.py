"""From a shop's own files to products and queries: `moon2 build-dataset`."""
