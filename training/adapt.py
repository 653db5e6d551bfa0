"""`moon2 adapt`: a generative Qwen3-VL learns a shop's products, before `moon2 convert` makes an encoder of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets
from huggingface_hub import ModelCard, ModelCardData
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration, set_seed
from trl import SFTConfig, SFTTrainer

from modeling_moon2 import Moon2Processor
from modeling_moon2.processing_moon2 import IMAGE_TOKEN, VISION_END_TOKEN, VISION_START_TOKEN
from moon2_dataset import load_products
from moon2_dataset.recipe import RecipeParser

from .plain_files import plain_checkpoint
from .source_checkpoint import MAX_PIXELS, SOURCE_TYPE, SourceWeights, load_source_processor, resolve_source
from .trainer_config import refuse_data_parallel

Product = dict[str, Any]

COLUMNS = ("product_id", "title", "category_path", "attributes", "images")
START_TOKEN, END_TOKEN = "<|im_start|>", "<|im_end|>"
BEFORE_CONTENT = f"{START_TOKEN}user\n"
AFTER_CONTENT = f"{END_TOKEN}\n{START_TOKEN}assistant\n"
IGNORED = -100  # label of a token without loss
LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
SMALL_FILES = (".json", ".txt", ".jinja")
WRITTEN_ANEW = ("config.json", "generation_config.json", "trainer_state.json")


class Task(NamedTuple):
    """What a product is asked for beside its images.

    Attributes:
        needs: columns of the products table; one of them must hold something.
        chat: (question, answer) for a product.
    """

    needs: tuple[str, ...]
    chat: Callable[[Product], tuple[str, str]]


def title_chat(product: Product) -> tuple[str, str]:
    """Images -> title."""
    return "Write the title of this product.", product["title"]


def attributes_chat(product: Product) -> tuple[str, str]:
    """Images and title, where there is one -> "category: Kitchen > Mugs; colour: red"."""
    question = "Name the category and the attributes of this product."
    if product["title"]:
        question += f" Title: {product['title']}"
    parts = [f"category: {' > '.join(product['category_path'])}"] if product["category_path"] else []
    parts += [f"{attribute['name']}: {attribute['value']}" for attribute in product["attributes"]]
    return question, "; ".join(parts)


TASKS = {
    "title": Task(("title",), title_chat),
    "attributes": Task(("category_path", "attributes"), attributes_chat),
}


@dataclass
class AdaptArguments:
    """What `moon2 adapt` starts from and learns, beside TRL's `SFTConfig`.

    Raises:
        ValueError: an argument has no meaning; the message gives the allowed values.
    """

    model: str = field(metadata={"help": "Folder or Hub id of a dense, generative Qwen3-VL, such as Instruct."})
    products: list[str] = field(
        metadata={"help": "Catalogue: Parquet files, globs or folders; of a folder the training split is taken."}
    )
    eval_products: list[str] | None = field(
        default=None, metadata={"help": "Catalogue for the evaluation loss; eval_strategy says when."}
    )
    eval_split: str | None = field(
        default=None,
        metadata={"help": "Of folders of eval_products, the split; not needed where it is the only one."},
    )
    tasks: list[str] = field(
        default_factory=lambda: list(TASKS),
        metadata={
            "help": "What the model learns to answer. title: images to title; attributes: images and title to "
            "category and attributes."
        },
    )
    max_images_per_item: int = field(
        default=1, metadata={"help": "Most pictures of a product in one example, its first ones."}
    )
    max_pixels: int = field(
        default=MAX_PIXELS,
        metadata={
            "help": "Most pixels of a picture in training, 1,024 to a visual token; larger ones are shrunk. A model "
            "with a smaller budget keeps it."
        },
    )
    use_peft: bool = field(
        default=False, metadata={"help": "Train LoRA adapters on the language model; merged before saving."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters; their scale is twice the rank."})

    def __post_init__(self):
        if isinstance(self.tasks, str):  # as a recipe may give it
            self.tasks = [self.tasks]
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"tasks={self.tasks}; give one or more of {', '.join(TASKS)}")
        for name in ("max_images_per_item", "max_pixels", "lora_r"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value}; give 1 or more")


class TaskCount(NamedTuple):
    """How many products serve a task, and why the others do not."""

    examples: int
    without_image: int
    without_answer: int

    def __str__(self) -> str:
        return (
            f"{self.examples:,} products; left out: {self.without_image:,} without image, "
            f"{self.without_answer:,} more without what is asked"
        )


def list_examples(products: Dataset, tasks: Sequence[str], first_row: int = 0) -> tuple[Dataset, dict[str, TaskCount]]:
    """One example for each product and task that it can serve.

    Args:
        products: in the form `validate_products` returns.
        tasks: names in TASKS.
        first_row: number of the first product in the table that the examples point into.

    Returns:
        The examples, (row of the product, task), in the products' order; and the count of every task.

    Raises:
        ValueError: no product serves any task.
    """
    columns = sorted({column for task in tasks for column in TASKS[task].needs} | {"images"})
    table = products.select_columns(columns).with_format("arrow")[:]
    sizes = {name: pc.utf8_length if name == "title" else pc.list_value_length for name in columns}
    filled = {name: pc.greater(size(table[name]), 0).to_numpy() for name, size in sizes.items()}  # (N,) each
    rows, names, counts = [], [], {}
    for task in tasks:
        answered = sum(filled[column] for column in TASKS[task].needs) > 0  # (N,)
        served = (filled["images"] & answered).nonzero()[0]
        rows.append(served)
        names += [task] * len(served)
        counts[task] = TaskCount(
            len(served), int((~filled["images"]).sum()), int((filled["images"] & ~answered).sum())
        )
    if not names:
        raise ValueError(
            f"no product serves {' or '.join(tasks)}; give products with images, and titles or attributes"
        )
    rows = np.concatenate(rows)
    order = rows.argsort(kind="stable")  # tasks side by side, so that batches of an evaluation mix them too
    return Dataset.from_dict({"row": first_row + rows[order], "task": [names[i] for i in order]}), counts


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What stands before a user's images and text, and between them and the answer.

    Returns:
        As the tokenizer's chat template renders it; as Qwen3-VL's own does where it has none.

    Raises:
        ValueError: the tokenizer does not know the chat's control tokens, or its template renders an image and a text
            otherwise.
    """
    if missing := [token for token in (START_TOKEN, END_TOKEN) if token not in tokenizer.get_vocab()]:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer lacks {missing[0]}; give a generative Qwen3-VL, such as Instruct"
        )
    if tokenizer.chat_template is None:
        return BEFORE_CONTENT, AFTER_CONTENT
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    before, found, after = rendered.partition(f"{VISION_START_TOKEN}{IMAGE_TOKEN}{VISION_END_TOKEN}?")
    if not found:
        raise ValueError(
            f"{tokenizer.name_or_path}: the tokenizer's chat template does not render an image and a text as "
            "Qwen3-VL's does; remove the template to train in Qwen3-VL's own format"
        )
    return before, after


class ChatCollator:
    """Makes batches of examples: reads the products' images, and lays each out as a chat with loss on the answer only.

    A row is `<|im_start|>user`, the images, the question `<|im_end|>`, `<|im_start|>assistant`, the answer
    `<|im_end|>`; control tokens in a product's texts are broken up. Where a row is longer than `max_length`, first the
    question is cut, which ends with the title, then the answer; image tokens never are.

    Args:
        processor: of the model's tokenizer and image processor.
        products: that the examples' rows point into.
        max_length: most tokens of a row; no limit when None.
        max_images_per_item: most pictures of a product in one example.

    Returns (of a call):
        input_ids, attention_mask, labels, mm_token_type_ids, each (B, L); pixel_values and image_grid_thw, flat over
        the images of all rows.

    Raises:
        ValueError: (of a call) a picture cannot be read or leaves no room for text; names the product.
    """

    def __init__(
        self, processor: Moon2Processor, products: Dataset, max_length: int | None = None, max_images_per_item: int = 1
    ) -> None:
        self.processor = processor
        self.products = products
        self.max_length = max_length
        self.max_images_per_item = max_images_per_item
        self.end_id = processor.tokenizer.convert_tokens_to_ids(END_TOKEN)
        self.before, self.after = (
            processor.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in chat_frame(processor.tokenizer)
        )

    def check_room(self) -> None:
        """Check that a row holds the largest pictures, the frame, and a token each of question and answer.

        Raises:
            ValueError: it does not; names the options that say so.
        """
        image_processor = self.processor.image_processor
        pixels = image_processor.size["longest_edge"]
        picture = pixels // (image_processor.patch_size * image_processor.merge_size) ** 2 + 2  # its marks
        needed = self.max_images_per_item * picture + len(self.before) + len(self.after) + 2
        if self.max_length is not None and self.max_length < needed:
            raise ValueError(
                f"max_length={self.max_length} is too short: {self.max_images_per_item} x {pixels:,} pixels take "
                f"{needed} tokens; lower --max_pixels or --max_images_per_item, or raise --max_length"
            )

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids, labels, pixels, grids = zip(
            *(self._row(self.products[example["row"]], example["task"]) for example in examples), strict=True
        )
        padded = pad_sequence(input_ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id or 0)
        return {
            "input_ids": padded,
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in input_ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "mm_token_type_ids": (padded == self.processor.image_token_id).long(),
            "pixel_values": torch.cat(pixels),
            "image_grid_thw": torch.cat(grids),
        }

    def _row(self, product: Product, task: str) -> tuple[torch.Tensor, ...]:
        question, answer = TASKS[task].chat(product)
        frame = len(self.before) + len(self.after)
        room = None if self.max_length is None else self.max_length - frame - 1  # one token is the answer's
        try:
            content = self.processor(
                text=[question], images=[product["images"][: self.max_images_per_item]], max_length=room
            )
        except ValueError as error:
            raise ValueError(f"product {product['product_id']}{str(error).removeprefix('item 0')}") from error
        prompt = torch.tensor([*self.before, *content["input_ids"][0].tolist(), *self.after])
        answer_ids = torch.tensor([*self.processor(text=answer)["input_ids"][0].tolist(), self.end_id])
        input_ids = torch.cat([prompt, answer_ids])[: self.max_length]
        labels = torch.cat([torch.full_like(prompt, IGNORED), answer_ids])[: self.max_length]
        return input_ids, labels, content["pixel_values"], content["image_grid_thw"]


def load_base(folder: Path, **options: Any) -> Qwen3VLForConditionalGeneration:
    """Load a dense Qwen3-VL with its language-modelling head, in the checkpoint's own precision.

    Args:
        folder: of the checkpoint.
        options: go to `from_pretrained`.

    Raises:
        ValueError: it is of another kind, incomplete or damaged.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no readable config.json ({error})") from error
    if config.model_type != SOURCE_TYPE:
        raise ValueError(f"{folder}: holds a {config.model_type} model; give a dense Qwen3-VL ({SOURCE_TYPE})")
    SourceWeights(folder)  # refuses a damaged file by its name
    model, report = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, **({"dtype": "auto"} | options)
    )
    missing = sorted(report["missing_keys"])
    if missing == ["lm_head.weight"]:
        raise ValueError(
            f"{folder}: has no language-modelling head, so it cannot learn to answer; give a generative Qwen3-VL, "
            "such as Instruct"
        )
    if missing:
        raise ValueError(f"{folder}: no tensor {missing[0]}; the checkpoint is incomplete or of another model")
    return model


def adapt(script: AdaptArguments, arguments: SFTConfig) -> Path:
    """Train a generative Qwen3-VL on products and save it as the same kind of checkpoint.

    Weights are trained in float32 (`bf16` computes in bfloat16 all the same), with `use_peft` only the adapters are,
    and saved in the source's precision.

    Args:
        script: model, products and tasks.
        arguments: of the training; `remove_unused_columns` and `dataset_kwargs` are set here.

    Returns:
        `arguments.output_dir`, which `moon2 convert` takes.

    Raises:
        FileNotFoundError: there is no such model, or no products.
        ValueError: the model is not a generative Qwen3-VL, no product serves a task, a row does not hold the pictures,
            or the process has several GPUs.
    """
    refuse_data_parallel(arguments)
    folder, out = resolve_source(script.model), Path(arguments.output_dir)
    if folder.resolve() == out.resolve():
        raise ValueError(f"output_dir={out} is the model's own folder; give another one")
    processor = load_source_processor(folder, script.max_pixels)
    tables = {"train": load_products(script.products, "train")}
    if script.eval_products is not None:
        tables["eval"] = load_products(script.eval_products, script.eval_split)
    examples, first_row = {}, 0
    for split, table in tables.items():
        examples[split], counts = list_examples(table, script.tasks, first_row)
        first_row += len(table)
        for task, count in counts.items():
            print(f"{split}, {task}: {count}")
    products = concatenate_datasets([table.select_columns(list(COLUMNS)) for table in tables.values()])
    collator = ChatCollator(processor, products, arguments.max_length, script.max_images_per_item)
    collator.check_room()

    set_seed(arguments.seed)  # before adapters are drawn
    model = load_base(folder, **(arguments.model_init_kwargs or {}))
    dtype = model.dtype
    if not script.use_peft:
        model.float()  # in bfloat16 weights, steps of 1e-5 would be rounded away
    arguments.model_init_kwargs = None
    arguments.dataset_kwargs = {"skip_prepare_dataset": True}
    arguments.remove_unused_columns = False
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=examples["train"],
        eval_dataset=examples.get("eval"),
        processing_class=processor.tokenizer,
        peft_config=_lora_config(script) if script.use_peft else None,
    )
    with plain_checkpoint(arguments.resume_from_checkpoint):
        trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    if script.use_peft:
        trainer.model = trainer.model.merge_and_unload()
    trainer.model.to(dtype)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        _complete_folder(folder, out, script)
    return out


def _lora_config(script: AdaptArguments):
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError("--use_peft needs PEFT; install moon2[peft]") from error
    return LoraConfig(
        r=script.lora_r, lora_alpha=2 * script.lora_r, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"
    )


def _complete_folder(source: Path, out: Path, script: AdaptArguments) -> None:
    """Put beside the weights what training leaves as it is: image and video processor, chat template; and a card."""
    for file in source.iterdir():
        if file.suffix in SMALL_FILES and file.name not in WRITTEN_ANEW and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    readme = source / "README.md"
    given = ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict() if readme.is_file() else {}
    base_model = given.get("base_model") if Path(script.model).is_dir() else script.model
    data = ModelCardData(
        base_model=base_model, license=given.get("license"), library_name="transformers", tags=["qwen3_vl", "moon2"]
    )
    text = f"""---
{data.to_yaml()}
---

# {out.resolve().name}

A dense, generative Qwen3-VL, trained on product data with `moon2 adapt` (tasks: {", ".join(script.tasks)}).
`moon2 convert` makes a MOON2.0 encoder of it.
"""
    (out / "README.md").write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `moon2 adapt`."""
    parser = RecipeParser(
        (AdaptArguments, SFTConfig),
        prog="moon2 adapt",
        description="Train a generative Qwen3-VL on product data, before it is converted.",
    )
    script, arguments = parser.parse_args_and_config(argv)
    print(f"adapted to {adapt(script, arguments)}")
