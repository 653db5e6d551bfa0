"""How the Space looks: a theme for light and dark that asks no other machine for fonts, and its style sheet."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STYLE_SHEET = Path(__file__).with_name("space.css")
FONTS = ["Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"]
INK, LIGHT_INK = "#1c1b22", "#ecebf2"  # of figures, on light and on dark
MOON = gr.themes.Color(
    c50="#f3f2ff", c100="#e8e6ff", c200="#d3cfff", c300="#b3acff", c400="#8f82fb", c500="#6f5cf1", c600="#5b43dd",
    c700="#4b34bb", c800="#3e2d97", c900="#342879", c950="#1f174b", name="moon",
)  # fmt: skip
SLATE = gr.themes.Color(
    c50="#fafafc", c100="#f3f3f7", c200="#e6e6ed", c300="#d3d3de", c400="#a0a0b2", c500="#6b6b7f", c600="#505063",
    c700="#3a3a4b", c800="#232330", c900="#181822", c950="#101018", name="slate",
)  # fmt: skip


def moon_theme() -> gr.themes.Base:
    """The theme."""
    theme = gr.themes.Base(
        primary_hue=MOON,
        secondary_hue=MOON,
        neutral_hue=SLATE,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONTS,
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_800",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*neutral_500",
        block_label_text_color_dark="*neutral_400",
        block_title_text_weight="500",
        input_border_width="1px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_800",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_800",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_border_width="1px",
        button_large_text_size="*text_md",
        button_primary_border_color="*primary_600",
        button_primary_border_color_dark="*primary_600",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_text_color="*neutral_800",
        button_secondary_text_color_dark="*neutral_100",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
    )
