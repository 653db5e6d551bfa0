"""Image-text co-augmentation of training products: `moon2 augment`."""
