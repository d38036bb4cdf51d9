"""Does what a user would write without edgeverify, each job in its own process.

``python -m benchmarks.user JOB --model NAME --checkpoint DIR`` prints as its last line, as JSON,
the process's peak memory in bytes and the job's report. ``benchmarks/upstream.py`` runs the jobs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from edgeverify.core.memory import peak_memory

PREFILL, ROWS = 32, 96
PROMPT = "What is the meaning of life?"  # from upstream's own verify scripts
NEW_TOKENS = 30


def original(checkpoint: Path) -> Any:
    """Loads the Hugging Face model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def reauthored(model: str, checkpoint: Path, rows: int) -> Any:
    """Returns the re-authored model, built and loaded by upstream's own code."""
    from litert_torch.generative.utilities import model_builder

    from edgeverify_models import load

    port = load(model)
    return model_builder.build_decoder_only_model(
        checkpoint_path=str(checkpoint),
        config=port.model_config(json.loads((checkpoint / "config.json").read_text())),
        tensor_names=model_builder.TENSOR_NAMES,
        model_class=port.model_class,
        mask_cache_size=rows,
    )


def verifier(model: str, checkpoint: Path) -> dict[str, Any]:
    """Runs upstream's ``verify_reauthored_model``, as its ``verify.py`` scripts call it.

    Its generate step passes ``use_model_defaults``, which transformers 5.23 refuses. This is
    reported, and the step is repeated without it, so that all of upstream's work is counted.
    Without a tokenizer (seeded weights) there is no text to continue, and only the logits are
    compared.
    """
    from litert_torch.generative.utilities import transformers_verifier
    from litert_torch.generative.utilities import verifier as upstream
    from transformers import AutoTokenizer, GenerationConfig

    class Generating(transformers_verifier.TransformersModelWrapper):
        def generate(self, inputs: Any, max_new_tokens: int) -> Any:
            config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False)
            return self.model.generate(inputs=inputs, generation_config=config)

    model_ = original(checkpoint)
    rows = upstream.DEFAULT_KV_CACHE_MAX_LEN
    other = upstream.ReauthoredModelWrapper(reauthored(model, checkpoint, rows))
    has_text = (checkpoint / "tokenizer.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint) if has_text else None

    def ask(wrapper: Any, **parts: bool) -> bool:
        return upstream.verify_reauthored_model(
            original_model=wrapper(model_),
            reauthored_model=other,
            tokenizer=upstream.TokenizerWrapper(tokenizer),
            generate_prompts=[PROMPT],
            max_new_tokens=NEW_TOKENS,
            atol=1e-4,
            **parts,
        )

    if tokenizer is None:
        return {"passed": ask(Generating, verify_prompts=False), "raised": ""}
    raised = ""
    try:
        passed = ask(transformers_verifier.TransformersModelWrapper)
    except (TypeError, ValueError) as error:
        raised = f"{type(error).__name__}: {error}".splitlines()[0]
        passed = ask(Generating, verify_inputs=False)
    return {"passed": passed, "raised": raised}


def forwards(model: str, checkpoint: Path) -> dict[str, Any]:
    """Runs only a plain forward of each model over the tokens of edgeverify's default case."""
    import torch
    from litert_torch.generative.layers.kv_cache import KVCache
    from litert_torch.generative.utilities.export_config import ExportConfig

    from edgeverify.core.case import DEFAULT_DECODE_STEPS, DEFAULT_PREFILL_LENGTHS, prompt_length

    count = prompt_length(DEFAULT_PREFILL_LENGTHS) + DEFAULT_DECODE_STEPS
    with torch.inference_mode():
        model_ = original(checkpoint)
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randint(model_.config.vocab_size, (1, count), generator=draw)
        wanted = model_(tokens).logits
        other = reauthored(model, checkpoint, ROWS)
        found = other(
            tokens.int(),
            torch.arange(count, dtype=torch.int),
            KVCache.from_model_config(ROWS, other.config),
            export_config=ExportConfig(output_logits_on_prefill=True),
        )["logits"]
    return {"largest difference": float((wanted - found).abs().max())}


def convert(model: str, checkpoint: Path, quantize: str) -> dict[str, Any]:
    """Runs ``convert_to_tflite`` with one recipe."""
    from litert_torch.generative.utilities.converter import convert_to_tflite
    from litert_torch.generative.utilities.export_config import ExportConfig

    with tempfile.TemporaryDirectory(dir=checkpoint) as folder:
        convert_to_tflite(
            reauthored(model, checkpoint, ROWS),
            folder,
            "upstream",
            PREFILL,
            ROWS,
            quantize=quantize,
            export_config=ExportConfig(output_logits_on_prefill=True),
        )
        return {"bytes": sum(file.stat().st_size for file in Path(folder).iterdir())}


def imports() -> dict[str, Any]:
    """Imports what any of these processes imports first."""
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from litert_torch.generative.utilities import model_builder  # noqa: F401

    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("job", choices=["verifier", "forwards", "convert", "imports"])
    parser.add_argument("--model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--quantize", default="none")
    options = parser.parse_args()
    if options.job == "convert":
        told = convert(options.model, options.checkpoint, options.quantize)
    elif options.job == "imports":
        told = imports()
    else:
        job = verifier if options.job == "verifier" else forwards
        told = job(options.model, options.checkpoint)
    print(f"\n{json.dumps({'peak': peak_memory(), **told})}")


if __name__ == "__main__":
    main()
