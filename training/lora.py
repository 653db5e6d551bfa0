"""LoRA for MOON2.0: which weights get adapters, and which small ones are trained in full beside them."""

from __future__ import annotations

from peft import LoraConfig

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
