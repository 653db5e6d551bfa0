"""Where each import package lies; everything else about the distribution stands in pyproject.toml."""

from setuptools import setup

setup(
    # A top-level package called `training` in site-packages would collide with half the world, so it has another name.
    package_dir={
        "modeling_moon2": "modeling_moon2",
        "moon2_dataset": "dataset_card",
        "moon2_training": "training",
        "moon2_space": "space_app",
    },
    # Listed one by one, sub-packages too: automatic discovery does not follow package_dir.
    packages=[
        "modeling_moon2",
        "moon2_dataset",
        "moon2_dataset.augment",
        "moon2_dataset.build",
        "moon2_training",
        "moon2_space",
    ],
    include_package_data=False,  # what package_data lists, and no more
    package_data={
        "modeling_moon2": ["py.typed"],
        "moon2_dataset": ["py.typed", "*.md"],
        "moon2_training": [
            "py.typed",
            "*.md",
            "recipes/*.yaml",
            "recipes/accelerate/*.yaml",
            "recipes/slurm/*.sbatch",
        ],
        "moon2_space": ["py.typed", "*.md", "*.css", "requirements.txt", "moon2-mini/*", "moon2-mini/*/*"],
    },
)
