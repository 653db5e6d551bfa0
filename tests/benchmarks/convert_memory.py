"""Peak memory of `moon2 convert` on a random checkpoint of Qwen3-VL-2B's shape. Linux only.

Example:
    python tests/benchmarks/convert_memory.py --work /tmp --json convert_memory.json
"""

# Nothing heavy is imported here: a process counts the peak of the one that started it as its own (ru_maxrss outlives
# exec), so the process that starts the conversions must stay small.
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "2b": {
        "text": {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
                 "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        "mrope_section": [24, 20, 20],
        "vision": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16,
                   "out_hidden_size": 2048, "deepstack_visual_indexes": [5, 11, 17], "num_position_embeddings": 2304},
    },
    "tiny": {
        "text": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
        "mrope_section": [6, 5, 5],
        "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 16,
                   "out_hidden_size": 64, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    },
}  # fmt: skip
EXPERTS = ["--num_experts", "4", "--num_experts_per_tok", "2"]
ALLOWANCE = 2 * 10**9  # bytes that `moon2 convert` may take beside the two largest shards of its source
SAMPLE_SECONDS = 0.02


def write_source(folder: Path, shape: str, shard_bytes: int) -> None:
    """Write a random bf16 Qwen3-VL with a tied head, a file at a time, and a small processor."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    from moon2_training.mini import MiniConfig, build_mini

    _, processor = build_mini(MiniConfig(num_hidden_layers=1, vision_depth=1, patch_size=16), ["red mug", "blue shoe"])
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=SHAPES[shape]["text"]
        | {"tie_word_embeddings": True, "rope_parameters": rope | {"mrope_section": SHAPES[shape]["mrope_section"]}},
        vision_config=SHAPES[shape]["vision"],
        tie_word_embeddings=True,
        dtype="bfloat16",
        image_token_id=processor.image_token_id,
        vision_start_token_id=processor.vision_start_token_id,
        vision_end_token_id=processor.vision_end_token_id,
    )
    config.architectures = [Qwen3VLForConditionalGeneration.__name__]
    config.save_pretrained(folder)

    with torch.device("meta"):
        state = Qwen3VLForConditionalGeneration(config).state_dict()
    del state["lm_head.weight"]  # tied
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in state.items():
        nbytes = tensor.numel() * torch.bfloat16.itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    weight_map = {}
    torch.manual_seed(0)
    for number, names in enumerate(shards, start=1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: torch.empty(state[name].shape, dtype=torch.bfloat16).normal_(0, 0.02) for name in names}
        save_file(tensors, file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file.name)
        del tensors  # else two files are in memory while the next one is made
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def drop_from_cache(files: list[Path]) -> None:
    """Ask the kernel to forget the contents of files, so that they are read from the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process that is no page of a file; 0 once it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(command: list[str], log: Path) -> dict[str, float]:
    """Run a command to its end.

    Returns:
        Its seconds by the clock and of the processor, its peak of resident memory as the kernel counts it (mapped
        pages of files included) and its peak of anonymous memory, sampled.

    Raises:
        RuntimeError: the command failed; holds the end of what it printed.
    """
    start, peak_anonymous = time.perf_counter(), 0
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    ended = 0
    while not ended:
        peak_anonymous = max(peak_anonymous, anonymous_bytes(process.pid))
        time.sleep(SAMPLE_SECONDS)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss": usage.ru_maxrss * 1024,
        "peak_anonymous": peak_anonymous,
    }


def main() -> int:
    """Measure both ways of making experts; returns 1 if one of them takes more memory than promised."""
    parser = argparse.ArgumentParser(description="Peak memory of `moon2 convert`.")
    parser.add_argument("--work", type=Path, help="folder to write in; 2b takes 15 GB of disk for a while")
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--shard_gb", type=float, default=1.0, help="largest file of the source, in GB")
    parser.add_argument("--json", type=Path, help="file to write the figures to, in bytes and seconds")
    options = parser.parse_args()
    if options.work and not options.work.is_dir():
        parser.error(f"{options.work} is no folder; make it")

    with tempfile.TemporaryDirectory(prefix="convert_memory-", dir=options.work) as work:
        source, out = Path(work) / "source", Path(work) / "out"
        source.mkdir()
        arguments = (source, options.shape, int(options.shard_gb * 1e9))
        writer = multiprocessing.get_context("spawn").Process(target=write_source, args=arguments)
        writer.start()
        writer.join()
        if writer.exitcode:
            raise RuntimeError(f"writing the source ended with {writer.exitcode}")
        shards = sorted(source.glob("*.safetensors"), key=lambda file: file.stat().st_size)
        sizes = [file.stat().st_size for file in shards]
        result = {"shape": options.shape, "source_shards": len(sizes), "bytes_in": sum(sizes),
                  "bound": sum(sizes[-2:]) + ALLOWANCE, "runs": {}}  # fmt: skip
        for expert_init in ("copy", "split"):
            drop_from_cache(shards)
            command = [sys.executable, "-m", "moon2_training.cli", "convert", str(source), str(out)]
            run = measure([*command, "--expert_init", expert_init, *EXPERTS], Path(work) / "log")
            written = list(out.glob("*.safetensors"))
            run["bytes_out"] = sum(file.stat().st_size for file in written)
            run["under_bound"] = run["peak_rss"] <= result["bound"]
            result["runs"][expert_init] = run
            shutil.rmtree(out)

    print(f"{options.shape} in {len(sizes)} files; sizes in GB, bound {result['bound'] / 1e9:.2f}")
    print("expert_init | peak RSS | peak anonymous | under bound | seconds | of CPU |    in |   out")
    for expert_init, run in result["runs"].items():
        print(
            f"{expert_init:<11} | {run['peak_rss'] / 1e9:8.2f} | {run['peak_anonymous'] / 1e9:14.2f} "
            f"| {'yes' if run['under_bound'] else 'NO':<11} | {run['seconds']:7.1f} | {run['cpu_seconds']:6.1f} "
            f"| {result['bytes_in'] / 1e9:5.2f} | {run['bytes_out'] / 1e9:5.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(run["under_bound"] for run in result["runs"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
