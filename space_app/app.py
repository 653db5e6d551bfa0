"""The Space's entry: options from the environment, a drawn shop where there is no catalogue yet, then serve."""

from __future__ import annotations

from moon2_dataset.demo_catalogue import render_demo_catalogue
from moon2_space.space import SpaceOptions, launch_space, open_catalogue

DRAWN_PRODUCTS = 300


def main() -> None:
    """Serve until interrupted."""
    options = SpaceOptions.from_environment()
    catalogue = open_catalogue(options)
    if not len(catalogue.now.index):
        products, _ = render_demo_catalogue(DRAWN_PRODUCTS)
        catalogue.put(products.to_list())
    launch_space(options, catalogue=catalogue)


if __name__ == "__main__":  # as Hugging Face starts it
    main()
