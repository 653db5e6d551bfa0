"""LoRA for MOON2.0: which weights get adapters, and which small ones are trained in full beside them.

This file alone imports PEFT, an extra: `pip install "moon2[peft]"`.
"""

from __future__ import annotations

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
        kwargs: go to `LoraConfig`. PEFT refuses `lora_dropout` on experts.

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
        ValueError: dropout on experts, which PEFT cannot do.
    """
    experts = list(EXPERTS) if options.lora_target_modules is None else None
    parameters = options.lora_target_parameters or experts
    if parameters and options.lora_dropout:
        raise ValueError(f"lora_dropout={options.lora_dropout}: adapters on experts have none; give 0")
    config = lora_config(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
    )
    config.target_modules = options.lora_target_modules or ATTENTION
    config.target_parameters = parameters
    config.modules_to_save = [*IN_FULL, *(options.lora_modules_to_save or ())]
    return get_peft_model(model, config)


def merge_adapters(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model with its adapters, if it has any, added to its weights."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model
