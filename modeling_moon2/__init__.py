"""MOON2.0 product encoder: the files that a model repository on the Hub carries, registered with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .configuration_moon2 import ALIGNMENT_OBJECTIVES, GUIDED_FIELDS, Moon2Config, Moon2TextConfig, Moon2VisionConfig
from .modeling_moon2 import (
    Moon2Model,
    Moon2Output,
    Moon2PreTrainedModel,
    Moon2Routing,
    Moon2TextModel,
    Moon2ViewsOutput,
    Moon2VisionModel,
)
from .processing_moon2 import Moon2Processor

AutoConfig.register("moon2", Moon2Config, exist_ok=True)
AutoModel.register(Moon2Config, Moon2Model, exist_ok=True)
AutoProcessor.register(Moon2Config, Moon2Processor, exist_ok=True)
# and with auto_map in what save_pretrained writes, so that a saved folder loads where this package is absent
Moon2Config.register_for_auto_class()
Moon2Model.register_for_auto_class("AutoModel")
Moon2Processor.register_for_auto_class()

__all__ = [
    "ALIGNMENT_OBJECTIVES",
    "GUIDED_FIELDS",
    "Moon2Config",
    "Moon2Model",
    "Moon2Output",
    "Moon2PreTrainedModel",
    "Moon2Processor",
    "Moon2Routing",
    "Moon2TextConfig",
    "Moon2TextModel",
    "Moon2ViewsOutput",
    "Moon2VisionConfig",
    "Moon2VisionModel",
]
