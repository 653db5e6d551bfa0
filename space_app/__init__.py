"""Search a catalogue with a MOON2.0 encoder: the Gradio app, its index and its heatmaps."""

import os

os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of each partition that an addition leaves empty
