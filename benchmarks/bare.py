"""The other sides of ``benchmarks/real_model.py``: what a user's own script would do.

``prepare`` writes what the others read, before the clock starts: the steps, padded chunks and
decode tokens of the check; the weights as float32 safetensors with a ``config.json``; the converted
file; and two copies of it with more outputs and inputs (tapped; cut between the blocks).

- ``warm`` imports torch, transformers and litert_torch.generative; loads the safetensors into the
  re-authored model; runs all steps as a whole, and again with every block and the final norm fed
  with a given input; opens the three files one after another and runs all steps in each. The cut
  one is fed with what the tapped one gave. Nothing is compared, hashed or recorded, except that the
  inputs of the blocks are kept to be given.
- ``least`` imports the same and makes one run each of the Hugging Face model, the re-authored model
  and the untouched file.
- ``cold`` imports the same; loads the GGUF by ``from_pretrained``; converts the re-authored model;
  makes the passes of ``warm``; and makes the reference's passes with edgeverify's own functions,
  since a user has no other way to run a model in float64 throughout or to have it sum in order:
  float32 step by step, the oracle, float32 with angles rounded otherwise, float32 summed in
  order, and all but the oracle again with the oracle's inputs to each block.

The ports come from ``models``; nothing else of this project is used by ``warm`` and ``least``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
TAP, INJECT = "tap:", "inject:"


def prepare(given: Path, cache: Path, checkpoint: Path) -> None:
    from edgeverify.legs.baselines import reference_baselines
    from edgeverify.legs.conversion import converted
    from edgeverify.legs.run import prepare as prepared
    from edgeverify.legs.selectors import Selectors
    from edgeverify.litert.flatbuffer import instrument

    chosen = Selectors.of(checkpoint=checkpoint, prompt="The capital of France is", cache=cache)
    run, _ = prepared("smollm2", chosen, verbose=False, progress=None)
    run, _ = reference_baselines(run, with_file=False)
    steps = [[s.signature, s.length, s.start, list(s.tokens)] for s in run.case.steps]
    facts = {"rows": run.case.kv_cache_len, "lengths": run.case.prefill_lengths, "steps": steps}
    (given / "case.json").write_text(json.dumps(facts))
    hf = given / "hf"
    hf.mkdir()
    (hf / "config.json").write_text(json.dumps(dict(run.hf_config)))
    shutil.copyfile(next((cache / "dequantized").glob("*.safetensors")), hf / "model.safetensors")
    file = given / "file.tflite"
    shutil.copyfile(converted(run), file)
    instrument(file, given / "tapped.tflite")
    instrument(file, given / "cut.tflite", isolate=True)


class Bare:
    """A user's script, in parts."""

    def __init__(self, given: Path) -> None:
        import litert_torch.generative  # noqa: F401
        import torch
        import transformers  # noqa: F401

        from edgeverify_models.smollm import SMOLLM2

        self.given, self.torch, self.port = given, torch, SMOLLM2
        facts = json.loads((given / "case.json").read_text())
        self.rows, self.lengths, self.steps = facts["rows"], facts["lengths"], facts["steps"]
        self.hf_config = json.loads((given / "hf" / "config.json").read_text())

    def state(self) -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self.given / "hf" / "model.safetensors")

    def reauthored(self, state: dict[str, Any]) -> Any:
        from edgeverify_models.port import build_model

        return build_model(self.port, self.hf_config, state, mask_cache_size=self.rows)

    def run_reauthored(self, model: Any, each: Callable[[int], Any] | None = None) -> None:
        """All steps with a KV cache; ``each`` is entered around a step."""
        from contextlib import nullcontext

        from litert_torch.generative.layers.kv_cache import KVCache
        from litert_torch.generative.utilities.export_config import ExportConfig

        torch = self.torch
        cache = KVCache.from_model_config(self.rows, model.config)
        export = ExportConfig(output_logits_on_prefill=True)
        with torch.inference_mode():
            for number, (_, length, start, tokens) in enumerate(self.steps):
                padded = tokens + [0] * (length - len(tokens))
                with each(number) if each else nullcontext():
                    output = model(
                        tokens=torch.tensor([padded], dtype=torch.int),
                        input_pos=torch.arange(start, start + length, dtype=torch.int),
                        kv_cache=cache,
                        export_config=export,
                    )
                cache = output["kv_cache"]

    def run_blocks(self, model: Any) -> None:
        """As a whole, the inputs of the blocks kept; then again, each fed with its own."""
        kept: dict[tuple[int, int], Any] = {}
        parts = [*model.transformer_blocks, model.final_norm]

        @contextmanager
        def hooked(step: int, give: bool) -> Iterator[None]:
            handles = []
            for index, part in enumerate(parts):

                def hook(_: Any, args: Any, kwargs: Any, key: Any = (step, index)) -> Any:
                    if give:
                        args = (kept[key], *args[1:])
                    else:
                        kept[key] = args[0]
                    return args, kwargs

                handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))
            yield
            for handle in handles:
                handle.remove()

        self.run_reauthored(model, lambda step: hooked(step, give=False))
        self.run_reauthored(model, lambda step: hooked(step, give=True))

    def run_file(self, name: str, fed: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        """All steps of one file; returns what its taps gave, where it has some."""
        import numpy as np
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(self.given / name), num_threads=os.cpu_count() or 1)
        runners = {s[0]: interpreter.get_signature_runner(s[0]) for s in self.steps}
        tapped = []
        cache: dict[str, Any] = {}
        for number, (signature, length, start, tokens) in enumerate(self.steps):
            details = runners[signature].get_input_details()
            if not cache:
                shapes = {k: v["shape"] for k, v in details.items() if k.startswith("kv_cache")}
                cache = {k: np.zeros(shape, np.float32) for k, shape in shapes.items()}
            inputs = {
                "tokens": np.array([tokens + [0] * (length - len(tokens))], np.int32),
                "input_pos": np.arange(start, start + length, dtype=np.int32),
                **cache,
            }
            for key in details:
                if key.startswith(INJECT) and fed is not None:
                    inputs[key] = fed[number][TAP + key[len(INJECT) :]]
            outputs = runners[signature](**inputs)
            cache = {key: outputs[key] for key in cache}
            tapped.append(outputs)
        return tapped

    def run_hf(self) -> None:
        from transformers import AutoModelForCausalLM, DynamicCache

        torch = self.torch
        model = AutoModelForCausalLM.from_pretrained(self.given / "hf", dtype=torch.float32)
        cache = DynamicCache()
        with torch.inference_mode():
            for _, _, _, tokens in self.steps:
                model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)

    def run_files(self) -> None:
        self.run_file("file.tflite")
        tapped = self.run_file("tapped.tflite")
        self.run_file("cut.tflite", tapped)

    def convert(self, model: Any, target: Path) -> None:
        import litert_torch
        from litert_torch.generative.layers.kv_cache import KVCache
        from litert_torch.generative.utilities.converter import ExportableModule
        from litert_torch.generative.utilities.export_config import ExportConfig

        torch = self.torch
        config = ExportConfig(output_logits_on_prefill=True)
        exported = ExportableModule(model, export_config=config).eval()
        signatures = {f"prefill_{n}": n for n in self.lengths} | {"decode": 1}
        converter: Any = litert_torch
        for name, length in signatures.items():
            inputs = {
                "tokens": torch.zeros((1, length), dtype=torch.int32),
                "input_pos": torch.arange(length, dtype=torch.int32),
                "kv_cache": KVCache.from_model_config(self.rows, model.config),
            }
            converter = converter.signature(name, exported, sample_kwargs=inputs)
        with torch.no_grad():
            converter.convert(lightweight_conversion=True).export(str(target))


def warm(given: Path) -> None:
    bare = Bare(given)
    model = bare.reauthored(bare.state())
    bare.run_blocks(model)
    del model
    bare.run_files()


def least(given: Path) -> None:
    bare = Bare(given)
    bare.run_hf()
    model = bare.reauthored(bare.state())
    bare.run_reauthored(model)
    del model
    bare.run_file("file.tflite")


def cold(given: Path, checkpoint: Path) -> None:
    bare = Bare(given)
    from transformers import AutoModelForCausalLM

    gguf = next(checkpoint.glob("*.gguf"))
    loaded = AutoModelForCausalLM.from_pretrained(
        checkpoint, gguf_file=gguf.name, dtype=bare.torch.float32
    )
    state = {k: v for k, v in loaded.state_dict().items() if k != "lm_head.weight"}
    reference_passes(bare, state)
    model = bare.reauthored(state)
    bare.run_blocks(model)
    bare.convert(model, given / "bare.tflite")
    del model, loaded, state
    bare.run_files()


def reference_passes(bare: Bare, state: dict[str, Any]) -> None:
    from edgeverify.backends import reference
    from edgeverify.core.case import Case, Step

    steps = tuple(
        Step(f"{'decode' if s[0] == 'decode' else 'prefill'}.{i}", s[0], s[1], s[2], tuple(s[3]))
        for i, s in enumerate(bare.steps)
    )
    case = Case("smollm2", "135m", "default", tuple(bare.lengths), bare.rows, steps)
    model = reference.build(bare.hf_config, state)
    reference.run(model, case)
    oracle = reference.run_oracle(model, case)
    for inject in (None, oracle):
        if inject is not None:
            reference.run(model, case, inject=inject)
        for sequential in (False, True):
            reference.run_otherwise(model, case, inject=inject, sequential=sequential)


if __name__ == "__main__":
    {"prepare": prepare, "warm": warm, "least": least, "cold": cold}[sys.argv[1]](
        *map(Path, sys.argv[2:])
    )
