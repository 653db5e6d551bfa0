"""LoRA for MOON2.0: which weights get adapters, and which small ones are trained in full beside them.

This file alone imports PEFT, an extra: `pip install "moon2[peft]"`.
"""

from __future__ import annotations

import re

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from trl import ModelConfig

ATTENTION = r".*language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
IN_FULL = ("gate", "dual_alignment", "temperature")


def lora_config(r: int = 16, lora_alpha: int = 32, experts: bool = True, **kwargs) -> LoraConfig:
    """Adapters on attention and experts of the language model; gate, W* and temperatures are trained in full.

    The gate and W* start random in a converted model, and an adapter of theirs would be no smaller than they are.

    Args:
        r: rank.
        lora_alpha: scale; the adapter's output is multiplied by lora_alpha / r.
        experts: also adapt the experts.
        kwargs: go to `LoraConfig`. PEFT refuses `lora_dropout` and `use_dora` on experts.

    Example:

    ```python
    >>> model = get_peft_model(model, lora_config())
    >>> Moon2Trainer(model, args, train_dataset=data, processing_class=processor).train()
    >>> model.merge_and_unload().save_pretrained("merged")
    ```
    """
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        target_modules=ATTENTION,
        target_parameters=list(EXPERTS) if experts else None,
        modules_to_save=list(IN_FULL),
        **kwargs,
    )


def add_adapters(model: PreTrainedModel, options: ModelConfig) -> PeftModel:
    """Wrap a model as TRL's options say: `lora_r`, `lora_alpha`, `lora_dropout`, `use_rslora`, `use_dora`.

    `lora_target_modules`, where given, replaces attention and experts as what is adapted, `lora_target_parameters` the
    experts, and `lora_modules_to_save` adds to what is trained in full.

    Args:
        model: a Moon2Model.
        options: TRL's.

    Raises:
        ValueError: dropout or DoRA on experts, which PEFT cannot do; names the ways out.
    """
    modules = options.lora_target_modules
    if isinstance(modules, str) and re.fullmatch(r"[\w.]+", modules):  # TRL makes a text of one name, PEFT a pattern
        modules = [modules]
    parameters = options.lora_target_parameters or (list(EXPERTS) if modules is None else None)
    for name, off in (("lora_dropout", "0"), ("use_dora", "false")):
        if parameters and (value := getattr(options, name)):
            raise ValueError(
                f"{name}={value}: adapters on experts have none; give {off}, or adapt attention alone with "
                "--lora_target_modules q_proj k_proj v_proj o_proj"
            )
    config = lora_config(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
    )
    config.target_modules = modules or ATTENTION
    config.target_parameters = parameters
    config.modules_to_save = [*IN_FULL, *(options.lora_modules_to_save or ())]
    return get_peft_model(model, config)


def merge_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its adapters, if it has any, added to its weights."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
