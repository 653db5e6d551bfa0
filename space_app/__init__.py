"""Search a catalogue with a MOON2.0 encoder: the Gradio app, its index and its heatmaps."""
