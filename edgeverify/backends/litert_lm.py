"""Runs a ``.litertlm`` in LiteRT-LM, the engine that phones use, on the CPU.

The engine runs in its own process, because a file that it rejects may end the process, and the
reason is only in what it writes to the terminal. This module is also that process's program
(``python -m``), and then imports only the engine.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeverify.core.errors import ArtifactError

# A file of 2 GB is loaded, packed and queried in less than a minute.
TIMEOUT = 600.0
# With this value the engine does not store packed weights beside the file.
NO_CACHE = ":nocache"
_LOGGED = re.compile(r"^E\d+ [^\]]*\] (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Questions:
    """The questions for the engine.

    Attributes:
        texts: texts to tokenize.
        prompt: text to continue greedily; no template is applied.
        steps: tokens of the continuation.
        target: text to score after the prompt.
        message: a user's message to put into the chat template; None requests no template.
    """

    texts: tuple[str, ...]
    prompt: str
    steps: int
    target: str
    message: str | None


@dataclass(frozen=True)
class Answers:
    """The engine's answers.

    Attributes:
        ids: the token ids of each text; without special tokens that the text does not name.
        start: the token that the engine puts before every prompt, or None.
        stops: sequences of ids that end an answer.
        rows: the total number of tokens that it accepts, according to the file's metadata.
        fed: how many tokens it fed for the prompt.
        text: the continuation.
        scores: the log-probability of each token of the target.
        rendered: the message in the chat template, or None if the template cannot be applied.
        log: the error messages that the engine wrote.
    """

    ids: tuple[tuple[int, ...], ...]
    start: int | None
    stops: tuple[tuple[int, ...], ...]
    rows: int
    fed: int
    text: str
    scores: tuple[float, ...]
    rendered: str | None
    log: str = ""


def ask(
    path: Path, questions: Questions, *, num_threads: int = 1, timeout: float = TIMEOUT
) -> Answers:
    """Loads a ``.litertlm`` in the engine, in a child process, and asks the questions.

    Args:
        path: the file.
        questions: what to ask.
        num_threads: threads of the engine.
        timeout: seconds.

    Raises:
        ArtifactError: the engine refuses the file or a step, ends its process, or hangs. The
            error gives the step and the engine's own words.
    """
    with TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked = {**asdict(questions), "path": str(path), "num_threads": num_threads}
        request.write_text(json.dumps(asked))
        command = [sys.executable, "-m", "edgeverify.backends.litert_lm", str(request), str(answer)]
        try:
            done = subprocess.run(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _failed(path, f"gave no answer within {timeout:g} seconds", "") from error
        log = _told(done.stderr.decode(errors="replace"))
        found = json.loads(answer.read_text()) if answer.exists() else {}
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise _failed(path, f"ended its process with {name} at {found.get('step', 'load')}", log)
    if done.returncode:
        step = found.get("step", "load")
        raise _failed(path, f"refuses it at {step}", log or found.get("error", ""))
    return _answers(found, log)


def _environment() -> dict[str, str]:
    """Returns this process's environment, with this very package on the path."""
    own = str(Path(__file__).parents[2])
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([own, before] if before else [own])}


def _told(log: str) -> str:
    """Returns the first error that the engine logged, without time and location."""
    found = _LOGGED.search(log)
    return " ".join(found.group(1).split()) if found else ""


def _failed(path: Path, what: str, log: str) -> ArtifactError:
    return ArtifactError(
        f"LiteRT-LM {what}" + (f" ({log})" if log else ""),
        where=path,
        expected="a .litertlm that this version of litert-lm-api runs",
        fix="look at the audit of the signatures, and bundle the file again",
    )


def _answers(found: dict[str, Any], log: str) -> Answers:
    return Answers(
        ids=tuple(tuple(ids) for ids in found["ids"]),
        start=found["start"],
        stops=tuple(tuple(stop) for stop in found["stops"]),
        rows=found["rows"],
        fed=found["fed"],
        text=found["text"],
        scores=tuple(found["scores"]),
        rendered=found["rendered"],
        log=log,
    )


class _Engine:
    """The engine in this process, queried step by step; its answers are on disk after each step."""

    def __init__(self, asked: dict[str, Any], answer: Path) -> None:
        import litert_lm

        litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
        self._litert_lm, self._asked, self._answer = litert_lm, asked, answer
        self._found: dict[str, Any] = {}

    def run(self) -> None:
        self._step("load")
        with self._litert_lm.ModelInfo(self._asked["path"]) as info:
            self._found["rows"] = info.max_context_tokens
        engine = self._litert_lm.Engine(
            self._asked["path"],
            self._litert_lm.Backend.CPU(thread_count=self._asked["num_threads"]),
            cache_dir=NO_CACHE,
            # The benchmark counts the tokens that were fed.
            enable_benchmark=True,
        )
        self._found["start"], self._found["stops"] = engine.bos_token_id, engine.eos_token_ids
        self._step("tokenize")
        self._found["ids"] = [engine.tokenize(text) for text in self._asked["texts"]]
        self._step("chat template")
        self._found["rendered"] = self._rendered(engine)
        self._continue(engine)
        self._score(engine)
        self._step("end")
        engine.close()

    def _rendered(self, engine: Any) -> str | None:
        if self._asked["message"] is None:
            return None
        with engine.create_conversation() as conversation:
            # If the template cannot be applied, the engine returns an empty text.
            return conversation.render_message_to_string(self._asked["message"]) or None

    def _continue(self, engine: Any) -> None:
        with self._session(engine, self._asked["steps"]) as session:
            self._step("prefill")
            session.run_prefill([self._asked["prompt"]])
            self._step("decode")
            self._found["text"] = session.run_decode().texts[0]
            self._found["fed"] = session.get_benchmark_info().last_prefill_token_count

    def _score(self, engine: Any) -> None:
        with self._session(engine, self._asked["steps"]) as session:
            self._step("score")
            session.run_prefill([self._asked["prompt"]])
            self._found["scores"] = session.run_text_scoring([self._asked["target"]]).token_scores[
                0
            ]

    def _session(self, engine: Any, steps: int) -> Any:
        sampler = self._litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
        return engine.create_session(
            apply_prompt_template=False, sampler_config=sampler, max_output_tokens=steps
        )

    def _step(self, name: str) -> None:
        self._found["step"] = name
        self.write()

    def write(self, error: str = "") -> None:
        """Writes to disk the answers collected so far."""
        self._answer.write_text(json.dumps({**self._found, "error": error}))


def main(request: str, answer: str) -> int:
    """Runs the child process: asks the engine the questions in ``request``, writes ``answer``."""
    engine = _Engine(json.loads(Path(request).read_text()), Path(answer))
    try:
        engine.run()
    except Exception as error:
        engine.write(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
